package grpcguard

import (
	"errors"
	"net/http"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
)

// Domain is the domain of the ErrorInfo in a refusal.
const Domain = "writ"

// Code is the gRPC code of a refusal with this code; "" is no credential.
func Code(code capability.Code) codes.Code {
	switch guard.Status(code) {
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusTooManyRequests:
		return codes.ResourceExhausted
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	}
	return codes.PermissionDenied
}

// CodeOf is the capability code in an error that a guarded server returned, or
// "" if there is none.
func CodeOf(err error) capability.Code {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == Domain {
			return capability.Code(info.Reason)
		}
	}
	return ""
}

// statusOf is what a stranger may know of a denial. Info is pairs of keys and
// values for its ErrorInfo.
func statusOf(d *guard.Denial, info ...string) error {
	message := "no credential"
	if d.Code != "" {
		message = string(d.Code)
	}
	c := Code(d.Code)
	s := status.New(c, message)
	if c == codes.ResourceExhausted || c == codes.Unavailable {
		retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}
		return withInfo(s, string(d.Code), d.Reference, info, protoadapt.MessageV1Of(retry))
	}
	return withInfo(s, string(d.Code), d.Reference, info)
}

func withInfo(s *status.Status, reason, reference string, pairs []string, more ...protoadapt.MessageV1) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: Domain, Metadata: map[string]string{"reference": reference}}
	for i := 0; i+1 < len(pairs); i += 2 {
		info.Metadata[pairs[i]] = pairs[i+1]
	}
	with, err := s.WithDetails(append(more, protoadapt.MessageV1Of(info))...)
	if err != nil {
		return s.Err()
	}
	return with.Err()
}

// shapeError is a call that could be read in two ways, or in none.
type shapeError struct{ detail string }

func (e *shapeError) Error() string { return e.detail }

// badRequest is the status of a shapeError.
func badRequest(reference string) error {
	return withInfo(status.New(codes.InvalidArgument, "bad_request"), "bad_request", reference, nil)
}

// shape makes err a refusal of the call's form unless it carries a code.
func shape(err error) error {
	_, code := errors.AsType[capability.Code](err)
	_, refusal := errors.AsType[*capability.Refusal](err)
	if code || refusal {
		return err
	}
	return &shapeError{err.Error()}
}

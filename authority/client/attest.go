package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// AttestBegin asks for a challenge. A caveat id in the request is what
// authorizes it; an enrolment without one needs the client's credential.
func (c *Client) AttestBegin(ctx context.Context, r *attest.BeginRequest) (*attest.Challenge, error) {
	k := ask("/v1/attest/begin", r)
	k.anonymous = len(r.Caveat) > 0
	return answer[attest.Challenge](ctx, c, k)
}

// AttestFinish hands in evidence, and returns the discharge that it is worth.
func (c *Client) AttestFinish(ctx context.Context, r *attest.FinishRequest) (*api.AttestResponse, error) {
	k := ask("/v1/attest/finish", r)
	k.anonymous = true
	return answer[api.AttestResponse](ctx, c, k)
}

// Devices lists one page of devices; limit 0 is the node's default.
func (c *Client) Devices(ctx context.Context, cursor string, limit int) (*api.DeviceList, error) {
	v := url.Values{}
	setIf(v, "cursor", cursor)
	setLimit(v, limit)
	return answer[api.DeviceList](ctx, c, get("/v1/devices", v))
}

// Device returns what is known of a device.
func (c *Client) Device(ctx context.Context, id capability.DeviceID) (*api.DeviceInfo, error) {
	return answer[api.DeviceInfo](ctx, c, get("/v1/devices/"+id.String(), nil))
}

// ForgetDevice forgets a device, so that it can enroll anew.
func (c *Client) ForgetDevice(ctx context.Context, id capability.DeviceID, r api.ForgetDeviceRequest) (*api.ForgetDeviceResponse, error) {
	return answer[api.ForgetDeviceResponse](ctx, c, change("/v1/devices/"+id.String()+"/forget", r))
}

// SetPolicy stores the next version of an attestation policy.
func (c *Client) SetPolicy(ctx context.Context, r api.PolicyRequest) (*api.PolicyInfo, error) {
	return answer[api.PolicyInfo](ctx, c, change("/v1/attest/policies", r))
}

// Policies lists the newest version of each attestation policy.
func (c *Client) Policies(ctx context.Context) (*api.PolicyList, error) {
	return answer[api.PolicyList](ctx, c, get("/v1/attest/policies", nil))
}

// Policy returns a version of an attestation policy; 0 is the newest.
func (c *Client) Policy(ctx context.Context, name string, version uint64) (*api.PolicyInfo, error) {
	v := url.Values{}
	if version != 0 {
		v.Set("version", strconv.FormatUint(version, 10))
	}
	return answer[api.PolicyInfo](ctx, c, get("/v1/attest/policies/"+url.PathEscape(name), v))
}

// RemovePolicy removes an attestation policy.
func (c *Client) RemovePolicy(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/attest/policies/" + url.PathEscape(name), change: true}, nil)
}

// SetRoots stores a bundle of roots that certify endorsement keys.
func (c *Client) SetRoots(ctx context.Context, name string, r api.RootsRequest) (*api.RootsInfo, error) {
	return answer[api.RootsInfo](ctx, c, change("/v1/attest/roots/"+url.PathEscape(name), r))
}

// RootsList lists the bundles of roots.
func (c *Client) RootsList(ctx context.Context) (*api.RootsList, error) {
	return answer[api.RootsList](ctx, c, get("/v1/attest/roots", nil))
}

// Roots returns a bundle of roots.
func (c *Client) Roots(ctx context.Context, name string) (*api.RootsInfo, error) {
	return answer[api.RootsInfo](ctx, c, get("/v1/attest/roots/"+url.PathEscape(name), nil))
}

// RemoveRoots removes a bundle of roots.
func (c *Client) RemoveRoots(ctx context.Context, name string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/attest/roots/" + url.PathEscape(name), change: true}, nil)
}

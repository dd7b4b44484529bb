package grpcguard

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/capability/guard"
	"github.com/writ-dev/writ/caveats"
)

// mapping is a Method, compiled.
type mapping struct {
	Method
	name     string
	segments []segment
	judge    *guard.Judge
}

type segment struct {
	text  string
	field bool
	multi bool
}

func compile(name string, m Method) (*mapping, error) {
	service, method, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	switch {
	case !ok || name[0] != '/' || service == "" || method == "" || strings.Contains(method, "/"):
		return nil, errors.New(`want a full method name, "/package.Service/Method"`)
	case !capability.ValidName(m.Action, 64):
		return nil, errors.New("no action, or not one word")
	case (m.Resource == "") == (m.ResourceFunc == nil):
		return nil, errors.New("want one of Resource and ResourceFunc")
	}
	out := &mapping{Method: m, name: name}
	if m.ResourceFunc != nil {
		return out, nil
	}
	input := inputOf(service, method)
	for part := range strings.SplitSeq(m.Resource, "/") {
		if len(out.segments) > 0 && out.segments[len(out.segments)-1].multi {
			return nil, errors.New("a {field...} that is not last in the resource")
		}
		s, err := readSegment(part, input)
		if err != nil {
			return nil, err
		}
		out.segments = append(out.segments, s)
	}
	return out, nil
}

func readSegment(part string, input protoreflect.MessageDescriptor) (segment, error) {
	inner, ok := strings.CutPrefix(part, "{")
	if !ok {
		if strings.ContainsAny(part, "{}*") {
			return segment{}, fmt.Errorf("segment %q of the resource: a field is a whole segment", part)
		}
		_, err := caveats.SplitResource(part)
		return segment{text: part}, err
	}
	inner, ok = strings.CutSuffix(inner, "}")
	name, multi := strings.CutSuffix(inner, "...")
	if !ok || !protoreflect.Name(name).IsValid() {
		return segment{}, fmt.Errorf("segment %q of the resource: want {field} or {field...}", part)
	}
	if input != nil && !isString(input.Fields().ByName(protoreflect.Name(name))) {
		return segment{}, fmt.Errorf("the request message has no string field %q", name)
	}
	return segment{text: name, field: true, multi: multi}, nil
}

// inputOf finds the request message of a method, so that a mapping that names
// a wrong field fails early; nil if its file is not linked in.
func inputOf(service, method string) protoreflect.MessageDescriptor {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		return nil
	}
	if m, ok := d.(protoreflect.MethodDescriptor); ok {
		return m.Input()
	}
	return nil
}

func isString(f protoreflect.FieldDescriptor) bool {
	return f != nil && f.Kind() == protoreflect.StringKind && f.Cardinality() != protoreflect.Repeated
}

// static reports whether a call can be judged before its first message.
func (m *mapping) static() bool {
	if m.ResourceFunc != nil || m.Arguments {
		return false
	}
	for _, s := range m.segments {
		if s.field {
			return false
		}
	}
	return true
}

// request is what a call with this message means.
func (m *mapping) request(ctx context.Context, message any) (capability.Request, error) {
	req := capability.Request{Action: m.Action, Client: clientAddr(ctx)}
	pm, ok := message.(proto.Message)
	if !ok && !m.static() {
		return req, &shapeError{"not a protocol buffer message"}
	}
	var err error
	if m.ResourceFunc != nil {
		if req.Resource, err = m.ResourceFunc(ctx, pm); err != nil {
			return req, shape(err)
		}
		// The same rules as for a path, whoever made the segments.
		segments, err := caveats.SplitResource(strings.Join(req.Resource, "/"))
		if err != nil || len(segments) != len(req.Resource) {
			return req, &shapeError{"a resource that nothing may match"}
		}
	} else if req.Resource, err = m.resource(pm); err != nil {
		return req, shape(err)
	}
	if m.Arguments {
		req.Arguments = arguments(pm.ProtoReflect())
	}
	return req, nil
}

func (m *mapping) resource(message proto.Message) ([]string, error) {
	out := make([]string, 0, len(m.segments)+4)
	for _, s := range m.segments {
		if !s.field {
			out = append(out, s.text)
			continue
		}
		pr := message.ProtoReflect()
		f := pr.Descriptor().Fields().ByName(protoreflect.Name(s.text))
		if !isString(f) {
			return nil, fmt.Errorf("no string field %q", s.text)
		}
		segments, err := caveats.SplitResource(pr.Get(f).String())
		if err != nil {
			return nil, err
		}
		if len(segments) != 1 && !s.multi {
			return nil, fmt.Errorf("field %q holds more than one segment", s.text)
		}
		out = append(out, segments...)
	}
	return out, nil
}

// arguments are the message's top-level fields. A handler reads the same
// decoded message, so there is nothing to read in two ways.
func arguments(m protoreflect.Message) capability.Fields {
	fields := m.Descriptor().Fields()
	out := make(capability.Fields, 0, fields.Len())
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && !m.Has(f) {
			continue
		}
		out = append(out, capability.Field{Name: string(f.Name()), Value: value(f, m.Get(f))})
	}
	return out
}

func value(f protoreflect.FieldDescriptor, v protoreflect.Value) capability.Value {
	if f.IsList() || f.IsMap() {
		return capability.Value{}
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		return capability.StringValue(v.String())
	case protoreflect.BoolKind:
		return capability.BoolValue(v.Bool())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return capability.NumberValue(strconv.FormatInt(v.Int(), 10))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return capability.NumberValue(strconv.FormatUint(v.Uint(), 10))
	case protoreflect.FloatKind:
		return capability.NumberValue(strconv.FormatFloat(v.Float(), 'g', -1, 32))
	case protoreflect.DoubleKind:
		return capability.NumberValue(strconv.FormatFloat(v.Float(), 'g', -1, 64))
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return capability.StringValue(string(e.Name()))
		}
	}
	return capability.Value{}
}

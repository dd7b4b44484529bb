package grpcguard

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-dev/writ/capability"
)

// TestArgumentKinds reads fields of every kind, with and without presence.
func TestArgumentKinds(t *testing.T) {
	type want map[string]capability.Value
	for _, c := range []struct {
		message proto.Message
		want    want
	}{
		{&wrapperspb.StringValue{Value: "x"}, want{"value": capability.StringValue("x")}},
		{&wrapperspb.StringValue{}, want{"value": capability.StringValue("")}},
		{&wrapperspb.BoolValue{Value: true}, want{"value": capability.BoolValue(true)}},
		{&wrapperspb.Int32Value{Value: math.MinInt32}, want{"value": capability.NumberValue("-2147483648")}},
		{&wrapperspb.Int64Value{Value: math.MaxInt64}, want{"value": capability.NumberValue("9223372036854775807")}},
		{&wrapperspb.UInt64Value{Value: math.MaxUint64}, want{"value": capability.NumberValue("18446744073709551615")}},
		{&wrapperspb.DoubleValue{Value: 1e21}, want{"value": capability.NumberValue("1e+21")}},
		{&wrapperspb.FloatValue{Value: 0.1}, want{"value": capability.NumberValue("0.1")}},
		{&wrapperspb.DoubleValue{Value: math.NaN()}, want{"value": {}}},
		{&wrapperspb.DoubleValue{Value: math.Inf(1)}, want{"value": {}}},
		{&wrapperspb.BytesValue{Value: []byte("x")}, want{"value": {}}},
		// Optional fields: what is not set is not there; messages and lists are,
		// and satisfy nothing.
		{&descriptorpb.FieldDescriptorProto{
			Name: proto.String("n"), Number: proto.Int32(0),
			Label: descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum(), Options: &descriptorpb.FieldOptions{},
		}, want{
			"name": capability.StringValue("n"), "number": capability.NumberValue("0"),
			"label": capability.StringValue("LABEL_REPEATED"), "options": {},
		}},
	} {
		got := arguments(c.message.ProtoReflect())
		if len(got) != len(c.want) {
			t.Errorf("%T: %v, want %v", c.message, got, c.want)
		}
		for name, value := range c.want {
			if v, ok := got.Get([]byte(name)); !ok || v != value {
				t.Errorf("%T: %s is %v, want %v", c.message, name, v, value)
			}
		}
	}
}

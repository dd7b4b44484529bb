package server

import (
	"net/http"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
	"github.com/writ-dev/writ/caveats/attest"
)

// attestRoutes are the endpoints of attestation.
func attestRoutes() []*route {
	post, get, del := http.MethodPost, http.MethodGet, http.MethodDelete
	name := []param{{name: "name", doc: "of the policy or bundle", path: true, required: true}}
	device := []param{{name: "device", doc: "device id", path: true, required: true}}
	return []*route{
		{method: post, pattern: "/v1/attest/begin", id: "beginAttestation", summary: "Ask for a challenge to a TPM",
			access: "the caveat id in the body is the authorization; an enrolment without one needs enroll on devices",
			lane:   laneAttest, anonymous: true, limit: attest.MaxMessage,
			endpoint: withBody[attest.BeginRequest]("", nil, beginAttestation)},
		{method: post, pattern: "/v1/attest/finish", id: "finishAttestation", summary: "Hand in evidence, and get the discharge that it is worth",
			access: "the challenge in the body is the authorization", lane: laneAttest, anonymous: true, limit: attest.MaxMessage,
			endpoint: withBody[attest.FinishRequest]("", nil, finishAttestation)},

		{method: get, pattern: "/v1/devices", id: "listDevices", summary: "List devices", action: "read", access: "devices",
			params: []param{paramCursor, paramLimit}, endpoint: withoutBody("read", on("devices"), listDevices)},
		{method: get, pattern: "/v1/devices/{device}", id: "getDevice", summary: "Show what is known of a device",
			action: "read", access: "devices/D", params: device, endpoint: withoutBody("read", deviceAccess, getDevice)},
		{method: post, pattern: "/v1/devices/{device}/forget", id: "forgetDevice", summary: "Forget a device, so that it can enroll anew",
			action: "devices", access: "devices/D", lane: laneRevocations, params: device,
			endpoint: withBody("devices", forgetAccess, forgetDevice)},

		{method: post, pattern: "/v1/attest/policies", id: "setPolicy", summary: "Store the next version of an attestation policy",
			action: "policies", access: "policies", limit: 2 * attest.MaxPolicy,
			endpoint: withBody("policies", func(*exchange, *api.PolicyRequest) (resources, error) { return one("policies") }, setPolicy)},
		{method: get, pattern: "/v1/attest/policies", id: "listPolicies", summary: "List attestation policies",
			action: "read", access: "policies", endpoint: withoutBody("read", on("policies"), listPolicies)},
		{method: get, pattern: "/v1/attest/policies/{name}", id: "getPolicy", summary: "Show an attestation policy",
			action: "read", access: "policies", params: append([]param{{name: "version", doc: "0: the newest", number: true}}, name...),
			endpoint: withoutBody("read", on("policies"), getPolicy)},
		{method: del, pattern: "/v1/attest/policies/{name}", id: "removePolicy", summary: "Remove an attestation policy: nothing is attested by it any more",
			action: "policies", access: "policies", lane: laneRevocations, status: http.StatusNoContent, params: name,
			endpoint: noResponse(withoutBody("policies", on("policies"), removePolicy))},

		{method: post, pattern: "/v1/attest/roots/{name}", id: "setRoots", summary: "Store a bundle of roots that certify endorsement keys",
			action: "policies", access: "roots", limit: maxRootsBody, params: name,
			endpoint: withBody("policies", func(*exchange, *api.RootsRequest) (resources, error) { return one("roots") }, setRoots)},
		{method: get, pattern: "/v1/attest/roots", id: "listRoots", summary: "List bundles of roots",
			action: "read", access: "roots", endpoint: withoutBody("read", on("roots"), listRoots)},
		{method: get, pattern: "/v1/attest/roots/{name}", id: "getRoots", summary: "Show a bundle of roots",
			action: "read", access: "roots", params: name, endpoint: withoutBody("read", on("roots"), getRoots)},
		{method: del, pattern: "/v1/attest/roots/{name}", id: "removeRoots", summary: "Remove a bundle of roots: nothing that it certifies is trusted any more",
			action: "policies", access: "roots", lane: laneRevocations, status: http.StatusNoContent, params: name,
			endpoint: noResponse(withoutBody("policies", on("roots"), removeRoots))},
	}
}

// maxRootsBody fits state.MaxBundle of PEM, which JSON makes a little longer.
const maxRootsBody = 384 << 10

// beginAttestation takes a caveat from anyone. An enrolment without one is an
// operator's.
func beginAttestation(x *exchange, r *attest.BeginRequest) (*attest.Challenge, error) {
	by := ""
	if len(r.Caveat) == 0 {
		if err := x.clear("enroll", []string{"devices"}); err != nil {
			return nil, err
		}
		by = x.call.Name
	}
	return x.s.a.AttestBegin(x.ctx(), by, r)
}

func finishAttestation(x *exchange, r *attest.FinishRequest) (*api.AttestResponse, error) {
	return x.s.a.AttestFinish(x.ctx(), r)
}

func listDevices(x *exchange) (*api.DeviceList, error) {
	n, err := x.limit()
	if err != nil {
		return nil, err
	}
	return x.s.a.Devices(x.ctx(), x.query.Get("cursor"), n)
}

func (x *exchange) device() (capability.DeviceID, error) {
	id, err := capability.ParseDeviceID(x.r.PathValue("device"))
	if err != nil {
		return id, invalid("a device id is 64 hexadecimal digits in lower case")
	}
	return id, nil
}

func deviceAccess(x *exchange) (resources, error) {
	id, err := x.device()
	if err != nil {
		return nil, err
	}
	return one("devices", id.String())
}

func getDevice(x *exchange) (*api.DeviceInfo, error) {
	id, err := x.device()
	if err != nil {
		return nil, err
	}
	return x.s.a.Device(x.ctx(), id)
}

func forgetAccess(x *exchange, _ *api.ForgetDeviceRequest) (resources, error) { return deviceAccess(x) }

func forgetDevice(x *exchange, r *api.ForgetDeviceRequest) (*api.ForgetDeviceResponse, error) {
	id, err := x.device()
	if err != nil {
		return nil, err
	}
	return x.s.a.ForgetDevice(x.ctx(), x.call, id, r.Reason)
}

func setPolicy(x *exchange, r *api.PolicyRequest) (*api.PolicyInfo, error) {
	return x.s.a.SetPolicy(x.ctx(), x.call, r)
}

func listPolicies(x *exchange) (*api.PolicyList, error) { return x.s.a.Policies(x.ctx()) }

func (x *exchange) name() (string, error) {
	name := x.r.PathValue("name")
	if !attest.ValidName(name) {
		return "", invalid("a name is 1 to 64 of a-z, 0-9, '.', '_' and '-'")
	}
	return name, nil
}

func getPolicy(x *exchange) (*api.PolicyInfo, error) {
	name, err := x.name()
	if err != nil {
		return nil, err
	}
	version, err := x.number("version", 0)
	if err != nil {
		return nil, err
	}
	return x.s.a.Policy(x.ctx(), name, version)
}

func removePolicy(x *exchange) (*struct{}, error) {
	name, err := x.name()
	if err != nil {
		return nil, err
	}
	return nil, x.s.a.RemovePolicy(x.ctx(), x.call, name)
}

func setRoots(x *exchange, r *api.RootsRequest) (*api.RootsInfo, error) {
	name, err := x.name()
	if err != nil {
		return nil, err
	}
	return x.s.a.SetRoots(x.ctx(), x.call, name, r)
}

func listRoots(x *exchange) (*api.RootsList, error) { return x.s.a.AllRoots(x.ctx()) }

func getRoots(x *exchange) (*api.RootsInfo, error) {
	name, err := x.name()
	if err != nil {
		return nil, err
	}
	return x.s.a.Roots(x.ctx(), name)
}

func removeRoots(x *exchange) (*struct{}, error) {
	name, err := x.name()
	if err != nil {
		return nil, err
	}
	return nil, x.s.a.RemoveRoots(x.ctx(), x.call, name)
}

package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-dev/writ/authority"
	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/authority/state"
	"github.com/writ-dev/writ/capability"
)

// one is access to a single resource.
func one(segments ...string) (resources, error) { return resources{segments}, nil }

// validAudience keeps a name that no token can carry from being asked about.
func validAudience(names ...string) error {
	for _, n := range names {
		if !capability.ValidName(n, capability.MaxAudience) {
			return invalid("an audience is 1 to " + strconv.Itoa(capability.MaxAudience) + " bytes of visible ASCII")
		}
	}
	return nil
}

func issueAccess(_ *exchange, r *api.IssueRequest) (resources, error) {
	if err := validAudience(r.Audience); err != nil {
		return nil, err
	}
	return one("audiences", r.Audience, "tokens")
}

func issue(x *exchange, r *api.IssueRequest) (*api.TokenResponse, error) {
	return x.s.a.Issue(x.ctx(), x.call, r)
}

func deriveAccess(_ *exchange, r *api.DeriveRequest) (resources, error) {
	if err := validAudience(r.Audience); err != nil {
		return nil, err
	}
	return one("audiences", r.Audience, "tokens")
}

func derive(x *exchange, r *api.DeriveRequest) (*api.TokenResponse, error) {
	return x.s.a.Derive(x.ctx(), x.call, r)
}

func (x *exchange) limit() (int, error) {
	n, err := x.number("limit", 0)
	if err == nil && n > 1000 {
		err = invalid("limit is at most 1000")
	}
	return int(n), err
}

func listTokens(x *exchange) (*api.TokenList, error) {
	n, err := x.limit()
	if err == nil {
		err = x.catchUp()
	}
	if err != nil {
		return nil, err
	}
	return x.s.a.Tokens(x.ctx(), authority.TokenQuery{
		Audience: x.query.Get("audience"), Subject: x.query.Get("subject"), Owner: x.query.Get("owner"),
		Cursor: x.query.Get("cursor"), Limit: n,
	})
}

// catchUp has the node apply what was acknowledged anywhere before this call, if
// the query wants a linearizable answer.
func (x *exchange) catchUp() error {
	if wanted, err := x.flag("linearizable"); err != nil || !wanted {
		return err
	}
	ctx, cancel := context.WithTimeout(x.ctx(), quorumWait)
	defer cancel()
	if err := x.s.a.Barrier(ctx); err != nil {
		return &refusal{status: http.StatusServiceUnavailable, code: capability.CodeUnavailable, retry: 1, detail: "no quorum answers", err: err}
	}
	return nil
}

// quorumWait is how long a linearizable read waits: longer than a failover takes.
const quorumWait = 3 * time.Second

func (x *exchange) tokenID() (capability.TokenID, error) {
	id, err := capability.ParseTokenID(x.r.PathValue("id"))
	if err != nil {
		return id, invalid("a token id is a UUID in lower case")
	}
	return id, nil
}

func tokenAccess(x *exchange) (resources, error) {
	id, err := x.tokenID()
	if err != nil {
		return nil, err
	}
	return one("tokens", id.String())
}

func getToken(x *exchange) (*api.TokenInfo, error) {
	id, err := x.tokenID()
	if err == nil {
		err = x.catchUp()
	}
	if err != nil {
		return nil, err
	}
	return x.s.a.Token(x.ctx(), id)
}

// revokeAccess is what a revocation reaches. A token that the registry does not
// know has no audience: revoking it takes a credential for tokens/ID.
func revokeAccess(x *exchange, r *api.RevokeRequest) (resources, error) {
	switch r.Kind {
	case api.RevokeToken, api.RevokeBranch:
		id, err := capability.ParseTokenID(r.Token)
		if err != nil {
			return nil, invalid("token is a token id: a UUID in lower case")
		}
		info, err := x.s.a.Token(x.ctx(), id)
		if err != nil {
			return one("tokens", id.String())
		}
		return one("audiences", info.Audience, "tokens")
	case api.RevokeSubject:
		return one("subjects", r.Subject)
	case api.RevokeHolder:
		return one("holders", r.Holder)
	case api.RevokeDevice:
		return one("devices", r.Device)
	case api.RevokeAudience:
		return one("audiences", r.Audience)
	case api.RevokeEpoch:
		return one("epochs", strconv.FormatUint(uint64(r.Epoch), 10))
	}
	return nil, errNoKind
}

var (
	revocationKinds = []api.RevocationKind{api.RevokeToken, api.RevokeBranch, api.RevokeSubject, api.RevokeHolder,
		api.RevokeDevice, api.RevokeAudience, api.RevokeEpoch}
	errNoKind = invalid("kind is one of token, branch, subject, holder, device, audience, epoch")
)

func revoke(x *exchange, r *api.RevokeRequest) (*api.RevokeResponse, error) {
	return x.s.a.Revoke(x.ctx(), x.call, r)
}

// revokeSelf needs no credential but the token in the body, unless the whole
// token is to go: then that token only says which.
func revokeSelf(x *exchange, r *api.SelfRevokeRequest) (*api.RevokeResponse, error) {
	if !r.Whole {
		return x.s.a.RevokeSelf(x.ctx(), x.call, r)
	}
	if x.set == nil {
		return nil, errNoCredential
	}
	id, err := x.s.a.TokenIdentity(r.Token)
	if err != nil {
		return nil, err
	}
	if err := x.clear("revoke", []string{"audiences", id.Audience, "tokens"}); err != nil {
		return nil, err
	}
	return x.s.a.Revoke(x.ctx(), x.call, &api.RevokeRequest{Kind: api.RevokeToken, Token: id.ID.String(), Reason: r.Reason})
}

func listRevocations(x *exchange) (*api.RevocationList, error) {
	n, err := x.limit()
	if err != nil {
		return nil, err
	}
	if k := x.query.Get("kind"); k != "" && !slices.Contains(revocationKinds, api.RevocationKind(k)) {
		return nil, errNoKind
	}
	return x.s.a.RevocationList(x.ctx(), authority.RevocationQuery{
		Kind: api.RevocationKind(x.query.Get("kind")), Cursor: x.query.Get("cursor"), Limit: n,
	})
}

func leaseAccess(_ *exchange, r *api.LeaseRequest) (resources, error) {
	if len(r.Macaroon) > capability.MaxTokenSize {
		return nil, capability.CodeTooLarge
	}
	audience, err := authority.MacaroonAudience(r.Macaroon)
	if err != nil {
		return nil, err
	}
	return one("audiences", audience, "budgets")
}

func lease(x *exchange, r *api.LeaseRequest) (*api.LeaseResponse, error) {
	return x.s.a.Lease(x.ctx(), x.call, r)
}

// returnAccess: an unknown or closed lease credits nothing, whoever asks. Whose call
// closed it, and is made again, is believed as to his name: it says on what his
// credential is judged.
func returnAccess(x *exchange, _ *api.ReturnRequest) (resources, error) {
	if x.token == nil {
		return nil, errNoCredential
	}
	in, err := x.token.Inspect()
	if err != nil {
		return nil, err
	}
	audience, ok, err := x.s.a.LeaseAudience(x.r.PathValue("id"), in.Identifier.Subject, x.call.Request)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errLeaseGone
	}
	return one("audiences", audience, "budgets")
}

var errLeaseGone = &refusal{status: 404, code: api.CodeNotFound, detail: "the lease is unknown or closed; nothing was credited"}

func returnLease(x *exchange, r *api.ReturnRequest) (*api.ReturnResponse, error) {
	return x.s.a.Return(x.ctx(), x.call, x.r.PathValue("id"), r)
}

func registeredAccess(_ *exchange, r *api.RegisteredRequest) (resources, error) {
	if err := validAudience(r.Audience); err != nil {
		return nil, err
	}
	return one("audiences", r.Audience)
}

func registered(x *exchange, r *api.RegisteredRequest) (*api.RegisteredResponse, error) {
	return x.s.a.Registered(x.ctx(), x.call.Caller, r)
}

const maxAudiences = 16 // in one request

func audiencesAccess(x *exchange) (resources, error) {
	names := x.query["audience"]
	if len(names) > maxAudiences {
		return nil, invalid("at most " + strconv.Itoa(maxAudiences) + " audiences")
	}
	if err := validAudience(names...); err != nil {
		return nil, err
	}
	var res resources
	for _, n := range names {
		res = append(res, []string{"audiences", n})
	}
	return res, nil
}

func getKeys(x *exchange) (*api.KeySet, error) {
	return x.s.a.Keys(x.ctx(), x.call.Caller, x.query["audience"])
}

func listEpochs(x *exchange) (*api.EpochList, error) { return x.s.a.Epochs(x.ctx()) }

func rotate(x *exchange, _ *struct{}) (*api.EpochInfo, error) { return x.s.a.Rotate(x.ctx(), x.call) }

func rekeyAccess(_ *exchange, r *api.RekeyRequest) (resources, error) {
	if err := validAudience(r.Audience); err != nil {
		return nil, err
	}
	return one("audiences", r.Audience)
}

func rekey(x *exchange, r *api.RekeyRequest) (*api.RekeyResponse, error) {
	generation, err := x.s.a.Rekey(x.ctx(), x.call, r)
	if err != nil {
		return nil, err
	}
	return &api.RekeyResponse{Audience: r.Audience, Generation: generation}, nil
}

func verifyAccess(_ *exchange, r *api.VerifyRequest) (resources, error) {
	if len(r.Set) > capability.MaxTokenSize {
		return nil, capability.CodeTooLarge
	}
	audience, err := authority.SetAudience(r.Set)
	if err != nil {
		return nil, err
	}
	return one("audiences", audience)
}

func verify(x *exchange, r *api.VerifyRequest) (*api.VerifyResponse, error) {
	return x.s.a.Verify(x.ctx(), x.call.Caller, r)
}

func serviceAccess(_ *exchange, r *api.ServiceRequest) (resources, error) {
	if r.Name == "" {
		return nil, invalid("name is missing")
	}
	return one("services", r.Name)
}

func addService(x *exchange, r *api.ServiceRequest) (*api.ServiceResponse, error) {
	return x.s.a.AddService(x.ctx(), x.call, r)
}

func listServices(x *exchange) (*api.ServiceList, error) { return x.s.a.Services(x.ctx()) }

func serviceNameAccess(x *exchange) (resources, error) { return one("services", x.r.PathValue("name")) }

func removeService(x *exchange) (*struct{}, error) {
	return nil, x.s.a.RemoveService(x.ctx(), x.call, x.r.PathValue("name"))
}

func join(x *exchange, r *api.JoinRequest) (*api.CredentialResponse, error) {
	if !x.s.joins.allow() {
		return nil, errOverloaded
	}
	return x.s.a.Join(x.ctx(), x.call, r)
}

// renewAccess is the service itself. A credential that was narrowed does not
// renew: what comes back would be broader than it.
func renewAccess(x *exchange, _ *struct{}) (resources, error) {
	if x.token == nil {
		return nil, errNoCredential
	}
	in, err := x.token.Inspect()
	if err != nil {
		return nil, credentialRefusal(err)
	}
	if !strings.HasPrefix(in.Identifier.Subject, state.ServicePrefix) || len(in.Caveats) != in.Identifier.Issued {
		return nil, errNotRenewable
	}
	return one("services", "self")
}

var errNotRenewable = &refusal{status: 403, code: capability.CodeActionDenied, challenge: "insufficient_scope",
	detail: "only a service's own credential, as it was issued, renews"}

func renew(x *exchange, _ *struct{}) (*api.CredentialResponse, error) {
	return x.s.a.Renew(x.ctx(), x.call)
}

func listDischargers(x *exchange) (*api.DischargerList, error) { return x.s.a.Dischargers(), nil }

func auditCheckpoint(x *exchange) (*api.CheckpointResponse, error) {
	return x.s.a.AuditCheckpoint(x.ctx())
}

func auditRecords(x *exchange) (*api.AuditRecords, error) {
	from, err := x.number("from", 0)
	if err != nil {
		return nil, err
	}
	n, err := x.limit()
	if err != nil {
		return nil, err
	}
	return x.s.a.AuditRecords(x.ctx(), int64(from), n)
}

func (x *exchange) two(a, b string) (int64, int64, error) {
	n, err := x.number(a, 0)
	if err != nil {
		return 0, 0, err
	}
	m, err := x.number(b, 0)
	return int64(n), int64(m), err
}

func auditInclusion(x *exchange) (*api.Proof, error) {
	size, n, err := x.two("size", "record")
	if err != nil {
		return nil, err
	}
	return x.s.a.AuditInclusion(x.ctx(), size, n)
}

func auditConsistency(x *exchange) (*api.Proof, error) {
	older, newer, err := x.two("old", "new")
	if err != nil {
		return nil, err
	}
	return x.s.a.AuditConsistency(x.ctx(), older, newer)
}

func status(x *exchange) (*api.Status, error) { return x.s.a.Status(), nil }

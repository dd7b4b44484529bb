package server

import (
	"net/http"
	"time"

	"github.com/writ-dev/writ/authority/api"
	"github.com/writ-dev/writ/capability"
)

// custodyRoutes are the endpoints of backup and key custody.
func custodyRoutes() []*route {
	post, get := http.MethodPost, http.MethodGet
	return []*route{
		{method: get, pattern: "/v1/cluster/snapshot", id: "saveSnapshot", summary: "Save a backup: a sealed file",
			action: "backup", access: "cluster/snapshot", contentType: api.BackupType, lane: laneFree, stream: saveSnapshot},
		{method: get, pattern: "/v1/keys/recipients", id: "listRecipients", summary: "List for whom the cluster key is wrapped",
			action: "read", access: "keys", endpoint: withoutBody("read", on("keys"), listRecipients)},
		{method: post, pattern: "/v1/keys/recovery", id: "setRecovery", summary: "Wrap the cluster key for an offline recovery recipient",
			action: "seal", access: "keys/recovery", lane: laneRevocations,
			endpoint: withBody("seal", func(*exchange, *api.RecoveryRequest) (resources, error) { return one("keys", "recovery") }, setRecovery)},
		{method: post, pattern: "/v1/keys/cluster", id: "rotateClusterKey", summary: "Seal every key anew under a new cluster key",
			action: "seal", access: "keys/cluster", lane: laneRevocations,
			endpoint: withBody("seal", func(*exchange, *struct{}) (resources, error) { return one("keys", "cluster") }, rotateClusterKey)},
		{method: get, pattern: "/v1/keys/ca", id: "showCA", summary: "Show by which fingerprint clients know the cluster",
			action: "read", access: "keys", endpoint: withoutBody("read", on("keys"), showCA)},
		{method: post, pattern: "/v1/keys/ca", id: "rotateCA", summary: "Give the cluster another CA, for which the one before vouches",
			action: "seal", access: "keys/ca", lane: laneRevocations,
			endpoint: withBody("seal", func(*exchange, *api.CARequest) (resources, error) { return one("keys", "ca") }, rotateCA)},
		{method: post, pattern: "/v1/keys/ca/retire", id: "retireCA", summary: "End the CA before: clients that pin it are refused",
			action: "seal", access: "keys/ca", lane: laneRevocations,
			endpoint: withBody("seal", func(*exchange, *struct{}) (resources, error) { return one("keys", "ca") }, retireCA)},
		{method: post, pattern: "/v1/cluster/nodes/{node}/expel", id: "expelNode", summary: "Remove a compromised node; every key, credential and token of before ends",
			action: "seal", access: "nodes/NODE", lane: laneRevocations, params: []param{{name: "node", doc: "the node's name", path: true, required: true}},
			endpoint: withBody("seal", func(x *exchange, _ *api.ExpelRequest) (resources, error) { return nodeAccess(x) }, expelNode)},
	}
}

// backupWriteTimeout is how long whoever fetches a backup may take for one write.
const backupWriteTimeout = 30 * time.Second

// saveSnapshot sends a backup. What goes wrong once it has begun shows in the
// checksum at its end, which is not there.
func saveSnapshot(x *exchange) error {
	if err := x.clear("backup", []string{"cluster", "snapshot"}); err != nil {
		return err
	}
	if !x.s.backup.TryLock() {
		return &refusal{status: http.StatusTooManyRequests, code: api.CodeOverloaded, retry: 5, detail: "another backup is being written"}
	}
	defer x.s.backup.Unlock()
	out := &backupWriter{x: x, control: http.NewResponseController(x.w)}
	_ = out.control.SetReadDeadline(time.Time{})
	err := x.s.a.Backup(x.ctx(), out)
	if err != nil && out.begun {
		x.s.log.Warn("a backup was not finished", "caller", x.call.Name, "error", err)
		panic(http.ErrAbortHandler) // the client sees it cut off
	}
	return err
}

// backupWriter bounds each write, not the whole.
type backupWriter struct {
	x       *exchange
	control *http.ResponseController
	begun   bool
}

// Write sends b.
func (w *backupWriter) Write(b []byte) (int, error) {
	if !w.begun {
		w.begun = true
		w.x.w.Header().Set("Content-Type", api.BackupType)
		w.x.w.WriteHeader(http.StatusOK)
	}
	_ = w.control.SetWriteDeadline(time.Now().Add(backupWriteTimeout))
	return w.x.w.Write(b)
}

func listRecipients(x *exchange) (*api.RecipientList, error) { return x.s.a.Recipients(), nil }

func setRecovery(x *exchange, r *api.RecoveryRequest) (*api.RecipientList, error) {
	if len(r.Recipient) > 200 {
		return nil, capability.CodeTooLarge
	}
	if err := x.s.a.SetRecovery(x.ctx(), x.call, r.Recipient); err != nil {
		return nil, err
	}
	return x.s.a.Recipients(), nil
}

func rotateClusterKey(x *exchange, _ *struct{}) (*api.RecipientList, error) {
	if _, err := x.s.a.RotateClusterKey(x.ctx(), x.call); err != nil {
		return nil, err
	}
	return x.s.a.Recipients(), nil
}

func showCA(x *exchange) (*api.CAInfo, error) { return x.s.a.CA() }

func rotateCA(x *exchange, r *api.CARequest) (*api.CAInfo, error) {
	return x.s.a.RotateCA(x.ctx(), x.call, r)
}

func retireCA(x *exchange, _ *struct{}) (*api.CAInfo, error) {
	return x.s.a.RetireCA(x.ctx(), x.call)
}

func expelNode(x *exchange, r *api.ExpelRequest) (*api.ExpelResponse, error) {
	return x.s.a.RemoveCompromised(x.ctx(), x.call, x.r.PathValue("node"), r)
}

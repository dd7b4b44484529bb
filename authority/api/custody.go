package api

// The endpoints of backup and key custody:
//
//	GET  /v1/cluster/snapshot     backup  cluster/snapshot   (a sealed file, application/octet-stream)
//	GET  /v1/keys/recipients      read    keys
//	POST /v1/keys/recovery        seal    keys/recovery
//	POST /v1/keys/cluster         seal    keys/cluster

// BackupType is the media type of a backup.
const BackupType = "application/octet-stream"

// RecoveryRequest names the offline identity that the cluster key is to be
// wrapped for.
type RecoveryRequest struct {
	Recipient string `json:"recipient"` // "writ-recipient-…"
}

// RecipientList says for whom the cluster key is wrapped.
type RecipientList struct {
	Number     uint32          `json:"number"` // of the cluster key; it rises with every rotation
	Recipients []RecipientInfo `json:"recipients"`
}

// RecipientInfo is one whose identity opens the cluster key.
type RecipientInfo struct {
	Name      string `json:"name"` // of a node, or "recovery"
	Recipient string `json:"recipient"`
}

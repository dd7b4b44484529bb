package api

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

package admin

// RenewRequest asks for a renewal; the answer is a stream of Renewal lines, the last of which has Done or Error set.
type RenewRequest struct {
	Name   string `json:"name"`
	Force  bool   `json:"force"`
	Wait   string `json:"wait"` // "" (start only), issued, done
	Reason string `json:"reason"`
}

// Renewal is one line of progress of a renewal.
type Renewal struct {
	Step   string   `json:"step,omitempty"`  // what is going on
	Again  bool     `json:"again,omitempty"` // it is the same step, further on
	Result *Renewed `json:"result,omitempty"`
	Error  *Error   `json:"error,omitempty"`
}

// Renewed is the answer of `renew --wait`.
type Renewed struct {
	Name          string   `json:"name"`
	Version       *string  `json:"version"`
	Serial        *string  `json:"serial"`
	Snapshot      *uint64  `json:"snapshot"`
	Rollout       *uint64  `json:"rollout"`
	IssuedSeconds *float64 `json:"issued_seconds"`
	DoneSeconds   *float64 `json:"done_seconds"`
}

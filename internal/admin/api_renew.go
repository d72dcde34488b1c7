package admin

import "time"

// RenewRequest asks for renewals; the answer is a stream of Renewal lines, the last of which has Result, Error, or a Batch that is Over.
type RenewRequest struct {
	Name     string   `json:"name"`      // one certificate: the answer is a Result
	Names    []string `json:"names"`     // several: the answer is a Batch
	All      bool     `json:"all"`       // every configured one, likewise
	IssuedBy string   `json:"issued_by"` // with All: only those whose last version this issuer has issued; they may use the reserve of its budget
	Issuer   string   `json:"issuer"`    // where to order this time; empty: at the certificate's own issuer
	Force    bool     `json:"force"`
	Again    bool     `json:"again"` // also what the same request has renewed within a day
	Wait     string   `json:"wait"`  // "" (start only), issued, done
	Reason   string   `json:"reason"`
}

// many reports whether the answer is a Batch.
func (r *RenewRequest) many() bool { return r.Name == "" }

// forced reports whether certificates are ordered that are not due. What a CA is about to revoke is not.
func (r *RenewRequest) forced() bool { return r.Force || r.IssuedBy != "" }

// Renewal is one line of progress of a renewal.
type Renewal struct {
	Step   string      `json:"step,omitempty"`  // what is going on
	Again  bool        `json:"again,omitempty"` // it is the same step, further on
	Result *Renewed    `json:"result,omitempty"`
	Batch  *RenewBatch `json:"batch,omitempty"`
	Error  *Error      `json:"error,omitempty"`
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

// RenewBatch is how the renewal of several certificates stands.
type RenewBatch struct {
	Over     bool `json:"over"` // the last line; the others have no certificates
	Total    int  `json:"total"`
	Done     int  `json:"done"`     // issued; in every wave where that is waited for
	Issued   int  `json:"issued"`   // on the way to every wave, where that is waited for
	Ordering int  `json:"ordering"` // under way, or in the queue
	Waiting  int  `json:"waiting"`  // for the budget, or for a CA that is down
	Failed   int  `json:"failed"`
	NotDue   int  `json:"not_due"`
	// Since is when the same request was begun, which this one goes on with; Already is how many were renewed since. They do not count in Total.
	Since   *time.Time `json:"since"`
	Already int        `json:"already"`
	Step    *string    `json:"step"` // what a rollout does that is waited for
	// Until is when the first of those that wait may be ordered.
	Until *time.Time `json:"until"`
	// Later are those that cannot be ordered within a day.
	Later        []RenewLater         `json:"later"`
	Certificates []RenewedCertificate `json:"certificates"`
	Seconds      float64              `json:"seconds"`
}

// RenewLater is a certificate that the budget lets be ordered only after a day.
type RenewLater struct {
	Name  string    `json:"name"`
	At    time.Time `json:"at"`
	Limit string    `json:"limit"`
	Scope *string   `json:"scope"`
}

// RenewedCertificate is one of a batch.
type RenewedCertificate struct {
	Name    string     `json:"name"`
	State   string     `json:"state"` // done, issued, ordering, waiting, failed, not_due
	Version *string    `json:"version"`
	Rollout *uint64    `json:"rollout"`
	Message *string    `json:"message"` // why it waits, or has failed
	Until   *time.Time `json:"until"`   // when it may be ordered, or is due
}

// RenewPlan is the answer of `renew --dry-run`.
type RenewPlan struct {
	Since        *time.Time       `json:"since"` // as in RenewBatch
	Already      int              `json:"already"`
	NotDue       int              `json:"not_due"`
	Certificates []PlannedRenewal `json:"certificates"`
}

// PlannedRenewal is a certificate that would be ordered.
type PlannedRenewal struct {
	Name     string     `json:"name"`
	Position int        `json:"position"` // in the order of urgency, from 1
	Issuer   string     `json:"issuer"`
	IssuedBy *string    `json:"issued_by"`
	NotAfter *time.Time `json:"not_after"`
	Due      *time.Time `json:"due"`
	Urgent   bool       `json:"urgent"`
	// At is when the budget lets it be ordered: null for at once. Limit and Scope are what it waits for.
	At    *time.Time `json:"at"`
	Limit *string    `json:"limit"`
	Scope *string    `json:"scope"`
	Hold  *string    `json:"hold"` // why an ordinary renewal would wait at its issuer
}

package admin

import "time"

// Issuers is the answer of `issuers list`.
type Issuers struct {
	Issuers []IssuerHead `json:"issuers"`
}

// IssuerHead is one configured issuer at a glance.
type IssuerHead struct {
	Name         string       `json:"name"`
	Directory    string       `json:"directory"`
	Up           bool         `json:"up"`
	Account      *string      `json:"account"`      // its URL; null: none is registered
	Certificates []string     `json:"certificates"` // that may be ordered there
	Error        *IssuerError `json:"error"`        // the last one that no success of the same certificate followed
	Hold         *IssuerHold  `json:"hold"`
	Maintenance  *Maintenance `json:"maintenance"` // the next one that is planned or announced
}

// IssuerError is why a certificate was not issued there.
type IssuerError struct {
	Secret  string    `json:"secret"`
	Kind    string    `json:"kind"`
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// IssuerHold is why ordinary renewals wait at an issuer. Until then at the latest it is looked at again.
type IssuerHold struct {
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

// Maintenance is a span of time in which ordinary renewals wait; one that the status page announces has a name.
type Maintenance struct {
	Name *string   `json:"name"`
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Issuer is the answer of `issuers show`.
type Issuer struct {
	IssuerHead

	Email          *string          `json:"email"`
	Profile        *string          `json:"profile"`
	EAB            *string          `json:"eab"`     // key id
	CAFile         *string          `json:"ca_file"` // null: the system's roots
	RootsFile      *string          `json:"roots_file"`
	RootsUnchecked bool             `json:"roots_unchecked"`
	Maintenances   []Maintenance    `json:"maintenances"` // the planned ones
	StatusPage     *StatusPage      `json:"status_page"`
	Seen           *IssuerDirectory `json:"seen"` // null: the directory was not used yet, or the last use failed
	Warnings       []Warning        `json:"warnings"`
}

// StatusPage is what is known of the status page of an issuer.
type StatusPage struct {
	URL       string        `json:"url"`
	At        *time.Time    `json:"at"` // when it was last understood
	Trouble   *string       `json:"trouble"`
	Since     *time.Time    `json:"since"`
	Announced []Maintenance `json:"announced"`
	Error     *string       `json:"error"` // why the last look failed
}

// IssuerDirectory is what the ACME directory of a CA says.
type IssuerDirectory struct {
	At            time.Time       `json:"at"`
	Terms         *string         `json:"terms"`
	Website       *string         `json:"website"`
	CAAIdentities []string        `json:"caa_identities"`
	EABRequired   bool            `json:"eab_required"`
	Profiles      []IssuerProfile `json:"profiles"`
	RenewalInfo   bool            `json:"renewal_info"`
}

// IssuerProfile is a certificate profile of a CA.
type IssuerProfile struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Warning is what a valid configuration would run into.
type Warning struct {
	Path    string `json:"path"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// TestRequest asks for an inspection of an issuer.
type TestRequest struct {
	Register bool `json:"register"`
}

// IssuerTest is the answer of `issuers test`.
type IssuerTest struct {
	Name    string           `json:"name"`
	OK      bool             `json:"ok"` // no check has failed
	Account *string          `json:"account"`
	Checks  []IssuerCheck    `json:"checks"` // in the order in which they were made
	Seen    *IssuerDirectory `json:"seen"`
}

// IssuerCheck is one thing that was looked at.
type IssuerCheck struct {
	Check   string  `json:"check"`  // directory, tls, clock, nonce, terms, eab, account, profiles, renewal_info, caa, status_page, limits
	Result  string  `json:"result"` // ok, warn, fail
	Message string  `json:"message"`
	Hint    *string `json:"hint"`
}

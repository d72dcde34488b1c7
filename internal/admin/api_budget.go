package admin

import "time"

// Budgets is the answer of `budget`.
type Budgets struct {
	Issuers []IssuerBudget `json:"issuers"`
}

// IssuerBudget is what one issuer still allows. A CA whose limits are not known, and for which none are configured, has an empty list.
type IssuerBudget struct {
	Name     string        `json:"name"`
	CA       string        `json:"ca"`
	Limits   []BudgetLevel `json:"limits"`  // by name, of one limit the lowest first
	Omitted  int           `json:"omitted"` // how many more of them are not full
	Forecast Forecast      `json:"forecast"`
}

// BudgetLevel is how full one limit is, for one scope.
type BudgetLevel struct {
	Limit
	RefillSeconds float64 `json:"refill_seconds"` // for one more
}

// Limit is one budget of an issuer.
type Limit struct {
	Name      string     `json:"name"`
	Scope     *string    `json:"scope"`     // domain, name or names; null where the limit is for all, or nothing is used up
	Available int        `json:"available"` // with the reserve
	Ordinary  int        `json:"ordinary"`  // without it
	Capacity  int        `json:"capacity"`
	Reserve   int        `json:"reserve"` // part of the capacity
	NextAt    *time.Time `json:"next_at"` // when ordinary work fits again; null: now
	FullAt    *time.Time `json:"full_at"` // null: now
}

// Forecast says whether every certificate of an issuer could be issued again today, with the reserve.
type Forecast struct {
	Certificates int       `json:"certificates"`
	Now          int       `json:"now"`  // how many can be ordered at once
	Day          int       `json:"day"`  // within 24 hours, with those
	Late         []LateFit `json:"late"` // those that cannot be ordered at once, the most urgent first
}

// LateFit is a certificate that would have to wait.
type LateFit struct {
	Certificate string    `json:"certificate"`
	At          time.Time `json:"at"`
	Limit       string    `json:"limit"`
	Scope       *string   `json:"scope"`
}

package admin

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/internal/audit"
)

// maxEntries bounds one answer of `audit list`; the file itself has all of them.
const maxEntries = 10_000

// AuditEntries is the answer of `audit list`, the oldest entry first.
type AuditEntries struct {
	Entries []audit.Entry `json:"entries"`
}

// AuditLine is one line of the answer to a check of the audit file: the last one has Report or Error set.
type AuditLine struct {
	Report *AuditReport `json:"report,omitempty"`
	Error  *Error       `json:"error,omitempty"`
}

// AuditReport is what `audit verify` prints.
type AuditReport struct {
	OK      bool    `json:"ok"`
	File    string  `json:"file"`
	Entries uint64  `json:"entries"` // that are intact and in their place
	First   *uint64 `json:"first"`   // number of the first one
	Last    *uint64 `json:"last"`    // and of the last one
	Hash    *string `json:"hash"`    // of the last one: noted elsewhere, it proves later that the file was not written anew
	Bad     uint64  `json:"bad"`     // lines that are not
	Line    *uint64 `json:"line"`    // the first of them
	Problem *string `json:"problem"` // what is wrong with it
}

func (s *Server) auditList(r *http.Request) (any, error) {
	q := r.URL.Query()
	f := audit.Filter{Limit: maxEntries, Secret: q.Get("secret"), Group: q.Get("group"), Event: q.Get("event")}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxEntries {
			return nil, fail(http.StatusBadRequest, "limit "+strconv.Quote(text)+": not between 1 and "+strconv.Itoa(maxEntries), "the file itself has every entry: one line of JSON each")
		}
		f.Limit = n
	}
	if text := q.Get("since"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, fail(http.StatusBadRequest, "since "+strconv.Quote(text)+": no time as in RFC 3339", "such as 2026-11-24T12:00:00Z")
		}
		f.Since = at
	}
	entries, err := s.Audit.List(r.Context(), f)
	if err != nil {
		return nil, err
	}
	return AuditEntries{Entries: entries}, nil
}

// auditVerify checks the whole file, which may take a while: so the answer is a stream, which no time bounds.
func (s *Server) auditVerify(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	line := AuditLine{}
	report, err := s.Audit.Verify(r.Context())
	if err != nil {
		_, line.Error = describe(err)
	} else {
		line.Report = &AuditReport{
			OK: report.OK(), File: s.Audit.Path(), Entries: report.Entries, First: optional(report.First), Last: optional(report.Last), Hash: optional(report.Hash),
			Bad: report.Bad, Line: optional(report.Line), Problem: optional(report.Problem),
		}
	}
	_ = json.NewEncoder(w).Encode(line) // a peer that went away has no use for an error
}

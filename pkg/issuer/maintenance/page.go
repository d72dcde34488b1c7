package maintenance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

const (
	// maxPage bounds an answer: a page with 50 long incidents has some 200 kB.
	maxPage = 4 << 20
	// maxText bounds what is kept of the words of a page, in bytes.
	maxText = 200
)

// ask gets a status page.
func (m *Monitor) ask(ctx context.Context, address string, now time.Time) (Report, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return Report{}, err
	}
	req.Header.Set("User-Agent", m.options.UserAgent)
	req.Header.Set("Accept", "application/json")
	resp, err := m.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL stands beside it in the log, without its password
		}
		return Report{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Report{}, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
	switch {
	case err != nil:
		return Report{}, fmt.Errorf("read the answer: %w", err)
	case len(body) > maxPage:
		return Report{}, fmt.Errorf("an answer of more than %d bytes", maxPage)
	}
	return ParsePage(body, now)
}

// Report is what a status page says.
type Report struct {
	// Trouble is empty where all is well; Since is when it began, zero where the page does not say.
	Trouble string
	Since   time.Time
	// Announced are maintenances with a begin and an end that are not over, by their begin.
	Announced []Window
}

// statuspage is /api/v2/summary.json, status.json or scheduled-maintenances/active.json of Atlassian's Statuspage, and of the services that
// answer like it.
type statuspage struct {
	Status *struct {
		Indicator   string `json:"indicator"` // none, minor, major, critical, maintenance
		Description string `json:"description"`
	} `json:"status"`
	Incidents []struct {
		Name      string `json:"name"`
		Impact    string `json:"impact"`
		Status    string `json:"status"`
		StartedAt string `json:"started_at"`
		CreatedAt string `json:"created_at"`
	} `json:"incidents"`
	Maintenances *[]struct {
		Name  string `json:"name"`
		State string `json:"status"` // scheduled, in_progress, verifying, completed
		From  string `json:"scheduled_for"`
		To    string `json:"scheduled_until"`
	} `json:"scheduled_maintenances"`
}

// statusio is the public API of status.io.
type statusio struct {
	Result *struct {
		Overall *struct {
			Status string `json:"status"`
			Code   int    `json:"status_code"` // 100 operational, 200 maintenance, 300 degraded, 400 partial, 500 disruption, 600 security event
		} `json:"status_overall"`
		Incidents []struct {
			Name string `json:"name"`
			Open string `json:"datetime_open"`
		} `json:"incidents"`
		Maintenance struct {
			Active, Upcoming []struct {
				Name string `json:"name"`
				From string `json:"datetime_planned_start"`
				To   string `json:"datetime_planned_end"`
			}
		} `json:"maintenance"`
	} `json:"result"`
}

// ParsePage reads the JSON of a Statuspage (/api/v2/summary.json, status.json or scheduled-maintenances/active.json) or of status.io
// (/1.0/status/ID). A trouble is the state major or critical of the whole page, and a maintenance under way. The error says that it is
// neither of both.
func ParsePage(body []byte, now time.Time) (Report, error) {
	var a statuspage
	var b statusio
	if err := json.Unmarshal(body, &b); err == nil && b.Result != nil && b.Result.Overall != nil {
		return b.report(now), nil
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return Report{}, errors.New("not the JSON of a status page: name its /api/v2/summary.json")
	}
	if a.Maintenances == nil && (a.Status == nil || a.Status.Indicator == "") {
		return Report{}, errors.New("the JSON is not that of a status page: name its /api/v2/summary.json")
	}
	return a.report(now), nil
}

func (p *statuspage) report(now time.Time) Report {
	var r Report
	if p.Maintenances != nil {
		for _, m := range *p.Maintenances {
			from, to := parseTime(m.From), parseTime(m.To)
			switch m.State {
			case "in_progress", "verifying":
				r.trouble("maintenance: "+m.Name, from)
			case "scheduled":
				r.announce(m.Name, from, to, now)
			}
		}
	}
	if p.Status == nil {
		return r
	}
	switch state := p.Status.Indicator; state {
	case "maintenance":
		r.trouble("maintenance: "+p.Status.Description, time.Time{})
	case "major", "critical":
		text, since := state+": "+p.Status.Description, time.Time{}
		for _, i := range p.Incidents {
			if i.Impact != "major" && i.Impact != "critical" || i.Status == "resolved" || i.Status == "postmortem" {
				continue
			}
			began := parseTime(i.StartedAt)
			if began.IsZero() {
				began = parseTime(i.CreatedAt)
			}
			if since.IsZero() || began.Before(since) {
				since = began
			}
			text += " (" + i.Name + ")"
		}
		r.Trouble = "" // an outage says more than a maintenance
		r.trouble(text, since)
	}
	return r
}

func (p *statusio) report(now time.Time) Report {
	var r Report
	maintenance := p.Result.Maintenance
	for _, m := range maintenance.Active {
		r.trouble("maintenance: "+m.Name, parseTime(m.From))
	}
	for _, m := range maintenance.Upcoming {
		r.announce(m.Name, parseTime(m.From), parseTime(m.To), now)
	}
	switch overall := p.Result.Overall; overall.Code {
	case 200:
		r.trouble("maintenance: "+overall.Status, time.Time{})
	case 400, 500:
		text, since := overall.Status, time.Time{}
		for _, i := range p.Result.Incidents {
			if began := parseTime(i.Open); since.IsZero() || began.Before(since) {
				since = began
			}
			text += " (" + i.Name + ")"
		}
		r.Trouble = "" // as above
		r.trouble(text, since)
	}
	return r
}

// trouble notes what is wrong; the first counts, with the begin that is known.
func (r *Report) trouble(text string, since time.Time) {
	if r.Trouble == "" {
		r.Trouble, r.Since = oneLine(text), since
	}
}

func (r *Report) announce(name string, from, to, now time.Time) {
	if from.IsZero() || !from.Before(to) || !now.Before(to) {
		return
	}
	r.Announced = append(r.Announced, Window{Name: oneLine(name), From: from, To: to})
	slices.SortStableFunc(r.Announced, func(a, b Window) int { return a.From.Compare(b.From) })
}

// parseTime returns the zero time for what is none: a page that leaves it out is still a page.
func parseTime(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// oneLine makes one line of foreign words, without control characters and not too long.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return text
}

package maintenance

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParsePage(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	at := func(text string) time.Time {
		out, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return out.UTC()
	}
	for _, tt := range []struct {
		name, body string
		want       Report
	}{
		{name: "well", body: allWell},
		{name: "minor", body: `{"status":{"indicator":"minor","description":"Partially Degraded Service"}}`},
		{
			name: "status.json", body: `{"page":{},"status":{"indicator":"major","description":"Partial System Outage"}}`,
			want: Report{Trouble: "major: Partial System Outage"},
		},
		{
			name: "the oldest incident that is not over", body: `{"status":{"indicator":"critical","description":"Down"},"incidents":[
				{"name":"small","impact":"minor","status":"investigating","started_at":"2026-11-20T00:00:00Z"},
				{"name":"old","impact":"major","status":"resolved","started_at":"2026-11-21T00:00:00Z"},
				{"name":"A","impact":"critical","status":"monitoring","created_at":"2026-11-24T10:00:00.123-02:00"},
				{"name":"B\u001b[31m","impact":"major","status":"identified","started_at":"2026-11-24T11:30:00Z"}]}`,
			want: Report{Trouble: "critical: Down (A) (B [31m)", Since: at("2026-11-24T11:30:00Z")},
		},
		{
			name: "active.json", body: `{"page":{},"scheduled_maintenances":[{"name":"Database","status":"in_progress","scheduled_for":"2026-11-24T11:00:00Z",
				"scheduled_until":"2026-11-24T13:00:00Z"}]}`,
			want: Report{Trouble: "maintenance: Database", Since: at("2026-11-24T11:00:00Z")},
		},
		{name: "nothing active", body: `{"page":{},"scheduled_maintenances":[]}`},
		{
			name: "maintenance of the page", body: `{"status":{"indicator":"maintenance","description":"Service Under Maintenance"}}`,
			want: Report{Trouble: "maintenance: Service Under Maintenance"},
		},
		{
			name: "an outage says more than a maintenance", body: `{"status":{"indicator":"critical","description":"Down"},
				"scheduled_maintenances":[{"name":"Database","status":"verifying","scheduled_for":"2026-11-24T11:00:00Z"}]}`,
			want: Report{Trouble: "critical: Down"},
		},
		{
			name: "announced, over, and without an end", body: `{"status":{"indicator":"none"},"scheduled_maintenances":[
				{"name":"second","status":"scheduled","scheduled_for":"2026-11-26T11:00:00Z","scheduled_until":"2026-11-26T12:00:00Z"},
				{"name":"first","status":"scheduled","scheduled_for":"2026-11-24T11:00:00Z","scheduled_until":"2026-11-24T12:30:00Z"},
				{"name":"past","status":"scheduled","scheduled_for":"2026-11-24T10:00:00Z","scheduled_until":"2026-11-24T12:00:00Z"},
				{"name":"done","status":"completed","scheduled_for":"2026-11-24T11:00:00Z","scheduled_until":"2026-11-24T13:00:00Z"},
				{"name":"open","status":"scheduled","scheduled_for":"2026-11-25T11:00:00Z","scheduled_until":null}]}`,
			want: Report{Announced: []Window{
				{Name: "first", From: at("2026-11-24T11:00:00Z"), To: at("2026-11-24T12:30:00Z")},
				{Name: "second", From: at("2026-11-26T11:00:00Z"), To: at("2026-11-26T12:00:00Z")},
			}},
		},
		{name: "status.io, well", body: `{"result":{"status_overall":{"status":"Operational","status_code":100},"incidents":[],"maintenance":{"active":[],"upcoming":[]}}}`},
		{name: "status.io, degraded", body: `{"result":{"status_overall":{"status":"Degraded Performance","status_code":300}}}`},
		{
			name: "status.io, disruption", body: `{"status":{"error":"no"},"result":{"status_overall":{"status":"Service Disruption","status_code":500},
				"incidents":[{"name":"API","datetime_open":"2026-11-24T09:00:00.000Z"},{"name":"CT","datetime_open":"2026-11-24T08:00:00.000Z"}]}}`,
			want: Report{Trouble: "Service Disruption (API) (CT)", Since: at("2026-11-24T08:00:00Z")},
		},
		{
			name: "status.io, maintenance", body: `{"result":{"status_overall":{"status":"Planned Maintenance","status_code":200},"maintenance":{
				"active":[{"name":"Network","datetime_planned_start":"2026-11-24T11:00:00Z","datetime_planned_end":"2026-11-24T13:00:00Z"}],
				"upcoming":[{"name":"Later","datetime_planned_start":"2026-11-25T11:00:00Z","datetime_planned_end":"2026-11-25T13:00:00Z"}]}}}`,
			want: Report{
				Trouble: "maintenance: Network", Since: at("2026-11-24T11:00:00Z"),
				Announced: []Window{{Name: "Later", From: at("2026-11-25T11:00:00Z"), To: at("2026-11-25T13:00:00Z")}},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParsePage([]byte(tt.body), now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
	for _, body := range []string{"", "null", "[]", "{}", `{"status":"ok"}`, `{"status":{}}`, `{"result":{}}`, `{"result":null}`, "<html>", `{"scheduled_maintenances":{}}`} {
		if got, err := ParsePage([]byte(body), now); err == nil {
			t.Errorf("%s: got %+v, want an error", body, got)
		}
	}
}

func TestAnnouncedMaintenanceHoldsFromItsBeginToItsEnd(t *testing.T) {
	now := time.Now()
	m := New(Options{Logger: (&logs{}).logger()})
	m.Set([]Issuer{{Name: "le", StatusURL: "http://status.example"}})
	m.pages["http://status.example"].Page = Page{At: now, Announced: []Window{
		{Name: "DB", From: now.Add(time.Minute), To: now.Add(10 * time.Minute)}, {Name: "year", From: now.Add(11 * time.Minute), To: now.Add(9000 * time.Hour)},
	}}
	hold := func(after time.Duration) time.Duration {
		reason, until := m.Hold("le", now.Add(after))
		if reason == "" {
			return 0
		}
		return until.Sub(now)
	}
	for _, tt := range []struct{ after, until time.Duration }{
		{0, 0},
		{time.Minute, 10 * time.Minute},
		{10 * time.Minute, 0},
		{11 * time.Minute, believedLooks * DefaultInterval},
		{believedLooks * DefaultInterval, 0},
	} {
		if got := hold(tt.after); got != tt.until {
			t.Errorf("after %s: held until %s, want %s", tt.after, got, tt.until)
		}
	}
	m.pages["http://status.example"].At = now.Add(MaxHold)
	if got := hold(MaxHold + 11*time.Minute); got != 0 { // and the page is believed
		t.Errorf("a maintenance of a year holds for longer than a day: until %s", got)
	}
	for after, want := range map[time.Duration]string{0: "DB", time.Minute: "year", 11 * time.Minute: ""} {
		m.pages["http://status.example"].At = now.Add(after)
		if next, _ := m.Next("le", now.Add(after)); next.Name != want {
			t.Errorf("after %s: the next is %q, want %q", after, next.Name, want)
		}
	}
}

func FuzzParsePage(f *testing.F) {
	f.Add([]byte(allWell))
	f.Add([]byte(outage))
	f.Add([]byte(`{"result":{"status_overall":{"status_code":500},"maintenance":{"active":[{"name":"x"}]}}}`))
	f.Add([]byte(`{"scheduled_maintenances":[{"status":"scheduled","scheduled_for":"2026-11-24T11:00:00Z","scheduled_until":"2026-11-24T13:00:00Z"}]}`))
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := ParsePage(body, now)
		if err != nil {
			return
		}
		if len(r.Trouble) > 2*maxText || oneLine(r.Trouble) != r.Trouble && len(r.Trouble) <= maxText {
			t.Errorf("trouble %q", r.Trouble)
		}
		for _, w := range r.Announced {
			if !w.From.Before(w.To) || !now.Before(w.To) {
				t.Errorf("window %+v", w)
			}
		}
	})
}

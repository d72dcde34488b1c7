package app

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

func TestOrdersAfterAHoldAreBounded(t *testing.T) {
	p := newParts(t, t.TempDir())
	day := 24 * time.Hour
	for _, row := range []struct {
		name string
		ago  []time.Duration
		want bool
	}{
		{"the first", nil, true},
		{"the second on the same day", []time.Duration{day - time.Minute}, false},
		{"the second on another day", []time.Duration{day + time.Minute}, true},
		{"the third in a week", []time.Duration{6 * day, 2 * day}, false},
		{"the third, when a week has passed since the first", []time.Duration{7*day + time.Minute, 2 * day}, true},
	} {
		var before []time.Time
		for _, ago := range row.ago {
			before = append(before, time.Now().Add(-ago))
		}
		value, err := json.Marshal(before)
		must(t, err)
		_, err = p.store.Commit(t.Context(), nil, []store.Operation{store.Put(store.Key("reissue", site), value)})
		must(t, err)
		got, err := p.reissuer.spend(t.Context(), site)
		must(t, err)
		if got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
		if again, err := p.reissuer.spend(t.Context(), site); err != nil || again {
			t.Errorf("%s: it is allowed again at once, %v", row.name, err)
		}
	}
}

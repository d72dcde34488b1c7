package budget

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// FuzzDecode: what is in the store is foreign bytes. Whatever is accepted can be computed with, for any limit, and is the same when it is stored
// again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"full":1700000000000000000,"slow":1700000000000000001,"full_refill":36000000000,"slow_refill":45000000000,"held":[[1700000000000000000,2]],"until":5,"issued":7,"label":"www.example.com"}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"held":[[5,1],[4,1]]}`))
	f.Add([]byte(`{"full":9223372036854775807,"until":9223372036854775807,"held":[[9223372036854775807,2147483648]]}`))
	f.Add([]byte(`{"full":-1}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := decode(value, 3)
		if err != nil {
			return
		}
		again, err := e.encode()
		if err != nil {
			t.Fatal(err)
		}
		other, err := decode(again, 3)
		if err != nil {
			t.Fatalf("its own encoding is refused: %v", err)
		}
		if diff := cmp.Diff(e, other, cmp.AllowUnexported(entry{}, bucket{}, hold{})); diff != "" {
			t.Fatalf("stored again it is another one:\n%s", diff)
		}
		now := int64(1.8e18)
		for _, one := range []Limit{{ExactSet, 5, 34 * time.Hour}, {RegisteredDomain, 30000, time.Second / 30000}, {NewOrders, 1 << 20, LongestFill >> 20}, {FailedAuthorizations, 1, 1}} {
			l := newLimit(one, 0.8)
			c := e.clone()
			c.at(l, now)
			for _, urgent := range []bool{true, false} {
				n, at := c.left(l, now, urgent), c.fitsAt(l, now, urgent)
				r, _ := c.view(l, urgent)
				if n < 0 || n > r.burst {
					t.Fatalf("%d left of %d", n, r.burst)
				}
				if at < now || at > now && c.fits(l, now, urgent) {
					t.Fatalf("fits at %d, now is %d, %d left", at, now, n)
				}
			}
			c.spend(l, now)
			c.at(l, now+int64(time.Hour))
			c.giveBack()
			c.fullAt(l, now)
		}
	})
}

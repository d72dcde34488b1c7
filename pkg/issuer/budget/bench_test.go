package budget

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// many is a CA that allows everything that the benchmarks do.
func many() Options {
	o := Options{Issuer: "many", Directory: private}
	for _, name := range Names() {
		o.Limits = append(o.Limits, Limit{Name: name, Burst: 1 << 30, Refill: 1})
	}
	return o
}

// BenchmarkSpend is one order after the other, on a real store that flushes to the disk.
func BenchmarkSpend(b *testing.B) {
	for _, names := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("names=%d", names), func(b *testing.B) {
			l := openBook(b, openStore(b), many()).Of("many")
			use := issuer.Use{Kind: issuer.UseOrder}
			for i := range names {
				use.DNSNames = append(use.DNSNames, fmt.Sprintf("www.example%d.com", i))
			}
			for b.Loop() {
				if err := l.Spend(b.Context(), use); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSpendBy16 is 16 workers at once.
func BenchmarkSpendBy16(b *testing.B) {
	l := openBook(b, openStore(b), many()).Of("many")
	var n atomic.Int64
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Spend(b.Context(), order(fmt.Sprintf("www.example%d.com", n.Add(1)))); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkForecast is a mass revocation of 10,000 certificates, new ones for the CA: the longest wait is over a year.
func BenchmarkForecast(b *testing.B) {
	l := letsEncrypt(b, openStore(b))
	wanted := make([]Wanted, 10_000)
	for i := range wanted {
		wanted[i] = Wanted{Name: fmt.Sprint(i), DNSNames: []string{fmt.Sprintf("n%d.example%d.com", i, i%20), fmt.Sprintf("m%d.example%d.com", i, i%7)}}
	}
	for b.Loop() {
		l.Forecast(time.Now(), wanted)
	}
}

// BenchmarkLimits100k looks at 100,000 buckets that are in use.
func BenchmarkLimits100k(b *testing.B) {
	l := letsEncrypt(b, openStore(b))
	r, now := l.rules, time.Now().UnixNano()
	for i := range 100_000 {
		t := r.setTouch([]string{fmt.Sprintf("www.example%d.com", i)}, nil)
		e := l.book.look(t, now)
		e.spend(t.limit, now)
		l.book.entries[t.key] = e
	}
	b.Run("scarcest", func(b *testing.B) {
		for b.Loop() {
			l.Scarcest(time.Now())
		}
	})
}

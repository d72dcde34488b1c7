package config

import (
	"fmt"
	"io/fs"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// RenewBefore is how long before the end a certificate is renewed: a Duration, or a share of its life in per cent.
// The zero value leaves it to the defaults: ACME renewal information, then 1/3 of the life (1/2 under 10 days).
type RenewBefore struct {
	Duration time.Duration
	// Percent of the life, above 0 and under 100; 0 where Duration counts.
	Percent float64
}

// IsZero reports whether nothing was configured.
func (r RenewBefore) IsZero() bool { return r == RenewBefore{} }

// Of returns the time before the end for a certificate that is valid for life; 0 if nothing was configured.
func (r RenewBefore) Of(life time.Duration) time.Duration {
	if r.Percent > 0 {
		return time.Duration(float64(life) * r.Percent / 100)
	}
	return r.Duration
}

// String returns the form of the file: 720h0m0s or 33%.
func (r RenewBefore) String() string {
	switch {
	case r.IsZero():
		return ""
	case r.Percent > 0:
		return strconv.FormatFloat(r.Percent, 'g', -1, 64) + "%"
	default:
		return r.Duration.String()
	}
}

// Amount is a number, or a share of another number in per cent.
type Amount struct {
	Value   float64
	Percent bool
}

// kind is how a value is written in the file.
type kind int

const (
	kindText kind = iota
	kindBool
	kindInt
	kindFloat
	kindDuration
	kindTime
	kindMode
	kindRenewBefore
	kindAmount
	kindMapping
	kindList
)

// kindOf returns the kind for a field's type, pointers removed.
func kindOf(t reflect.Type) kind {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return kindDuration
	case reflect.TypeFor[time.Time]():
		return kindTime
	case reflect.TypeFor[fs.FileMode]():
		return kindMode
	case reflect.TypeFor[RenewBefore]():
		return kindRenewBefore
	case reflect.TypeFor[Amount]():
		return kindAmount
	}
	switch t.Kind() {
	case reflect.Bool:
		return kindBool
	case reflect.Int:
		return kindInt
	case reflect.Float64:
		return kindFloat
	case reflect.Struct:
		return kindMapping
	case reflect.Slice:
		return kindList
	case reflect.String:
		return kindText
	default:
		panic(fmt.Sprintf("config: a field of type %v has no form in the file", t))
	}
}

// parseScalar reads text, as it stands in the file or the environment, as a value of kind k.
func parseScalar(k kind, text string) (any, error) {
	switch k {
	case kindBool:
		switch text {
		case "true", "false":
			return text == "true", nil
		}
		return nil, fmt.Errorf("want true or false, got %q", text)
	case kindInt:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("want a whole number, got %q", text)
		}
		return int(n), nil
	case kindFloat:
		return parseNumber(text)
	case kindDuration:
		return parseDuration(text)
	case kindTime:
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, fmt.Errorf("want a time such as 2026-12-01T02:00:00Z, got %q", text)
		}
		return at, nil
	case kindMode:
		mode, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 32)
		if err != nil || mode > 0o777 {
			return nil, fmt.Errorf("want an octal mode such as 0660, got %q", text)
		}
		return fs.FileMode(mode), nil
	case kindRenewBefore:
		return parseRenewBefore(text)
	case kindAmount:
		number, percent := strings.CutSuffix(text, "%")
		value, err := parseNumber(number)
		if err != nil {
			return nil, fmt.Errorf("want a number or a percentage such as 50%%, got %q", text)
		}
		return Amount{Value: value, Percent: percent}, nil
	default:
		return text, nil
	}
}

func parseNumber(text string) (float64, error) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("want a number, got %q", text)
	}
	return f, nil
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("want a duration such as 90s, 5m or 12h, got %q", text)
	}
	return d, nil
}

func parseRenewBefore(text string) (RenewBefore, error) {
	number, ok := strings.CutSuffix(text, "%")
	if !ok {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return RenewBefore{}, fmt.Errorf("want a duration such as 720h or a percentage such as 33%%, got %q", text)
		}
		return RenewBefore{Duration: d}, nil
	}
	percent, err := parseNumber(number)
	if err != nil || percent <= 0 || percent >= 100 {
		return RenewBefore{}, fmt.Errorf("want a percentage above 0 and under 100, got %q", text)
	}
	return RenewBefore{Percent: percent}, nil
}

// String names the kind for messages.
func (k kind) String() string {
	switch k {
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number"
	case kindFloat:
		return "a number"
	case kindDuration, kindRenewBefore:
		return "a duration"
	case kindTime:
		return "a time"
	case kindMode:
		return "an octal mode"
	case kindAmount:
		return "a number or a percentage"
	case kindMapping:
		return "a mapping"
	case kindList:
		return "a list"
	default:
		return "text"
	}
}

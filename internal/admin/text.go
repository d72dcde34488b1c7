package admin

import "strings"

// oneLine joins the lines of an error that has several: a person gets one sentence, a program one string without breaks.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func joined(hints []string) string { return strings.Join(hints, "; ") }

package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/internal/audit"
)

// EventCommand is the audit event of a command that changes something, or was refused.
const EventCommand = "command"

type commandKey struct{}

// command is what the audit trail says of an operator's command.
type command struct {
	name    string
	secret  string
	version string
	group   string
	reason  string
	words   []string // key=value
}

// withCommand makes body note what is asked for.
func withCommand(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), commandKey{}, &command{}))
}

// commandOf is what is noted of a request so far.
func commandOf(r *http.Request) *command {
	c, ok := r.Context().Value(commandKey{}).(*command)
	if !ok {
		return &command{} // for tests of single parts
	}
	return c
}

// commandName turns the pattern of an operation into the words of the command line.
func commandName(pattern string) string {
	_, path, _ := strings.Cut(pattern, " /v1/")
	words := slices.DeleteFunc(strings.Split(path, "/"), func(w string) bool { return strings.HasPrefix(w, "{") })
	switch name := strings.Join(words, " "); name {
	case "secrets":
		return "secrets import"
	case "identity":
		return "identity issue"
	case "rollouts":
		return "rollout start"
	default:
		return strings.Replace(name, "rollouts ", "rollout ", 1)
	}
}

// spoken are the text fields of requests that may be shown. Others hold keys and certificates.
var spoken = []string{"Reason", "Group", "Name", "Secret", "Version", "Node", "Wait", "Kind", "Issuer", "IssuedBy"}

// note takes over a decoded request: numbers, switches, and the texts that may be shown.
func (c *command) note(request any) {
	v := reflect.ValueOf(request)
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return
	}
	for field, value := range v.Fields() {
		text := ""
		switch kind := value.Kind(); {
		case value.IsZero():
			continue
		case kind == reflect.String && slices.Contains(spoken, field.Name):
			text = value.String()
		case kind == reflect.Bool, value.CanInt(), value.CanUint():
			text = fmt.Sprint(value.Interface())
		default:
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		c.take(name, text)
	}
}

func (c *command) take(key, text string) {
	switch key {
	case "name", "secret":
		c.secret = text
	case "version":
		c.version = text
	case "group":
		c.group = text
	case "reason":
		c.reason = text
	default:
		if word := key + "=" + text; !slices.Contains(c.words, word) {
			c.words = append(c.words, word)
		}
	}
}

// record keeps a command with what came of it, before it is answered. Where the audit file cannot be written the command counts all the same.
func (s *Server) record(r *http.Request, result []slog.Attr, refused string) {
	c := commandOf(r)
	c.name = commandName(r.Pattern)
	for key, text := range map[string]string{"name": r.PathValue("name"), "version": r.URL.Query().Get("version"), "rollout": r.PathValue("id"), "issuer": r.PathValue("issuer")} {
		if text != "" {
			c.take(key, text)
		}
	}
	for _, a := range result {
		if a.Key != "secret" || c.secret == "" {
			c.take(a.Key, a.Value.String())
		}
	}
	detail := strings.Join(append([]string{c.name}, c.words...), " ")
	if c.reason != "" {
		detail += "; reason: " + c.reason
	}
	if refused != "" {
		detail += "; refused: " + refused
	}
	_ = s.Audit.Append(context.WithoutCancel(r.Context()), audit.Entry{
		Event: EventCommand, Who: peerOf(r.Context()).String(), Secret: c.secret, Version: c.version, Group: c.group, Detail: detail,
	}) // it has said so, loudly, and keeps the entry
}

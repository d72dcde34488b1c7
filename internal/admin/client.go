package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// ErrUnreachable is returned when no server answers on the socket.
var ErrUnreachable = errors.New("the server is not reachable")

// answerTime bounds every request but a stream: the server answers from memory, or after a commit.
const answerTime = 30 * time.Second

// maxLine bounds a line of a stream: the last one of a renewal of 100,000 certificates has some 20 MB.
const maxLine = 64 << 20

// Client talks to a Server on its Unix socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client for the socket at path.
func NewClient(path string) *Client {
	return &Client{socket: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Get decodes the answer of a reading operation into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, nil, v)
}

// Post sends body and decodes the answer into v.
func (c *Client) Post(ctx context.Context, path string, body, v any) error {
	return c.do(ctx, http.MethodPost, path, body, v)
}

func (c *Client) do(ctx context.Context, method, path string, body, v any) error {
	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	resp, err := c.send(bounded, method, path, body)
	if err == nil {
		defer resp.Body.Close()
		if err = json.NewDecoder(resp.Body).Decode(v); err != nil {
			err = fmt.Errorf("answer of %s: %w", path, err)
		}
	}
	if bounded.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w at %s: no answer within %s", ErrUnreachable, c.socket, answerTime)
	}
	return err
}

// Stream sends body and calls each for every line of the answer, until it returns false or the stream ends.
func (c *Client) Stream(ctx context.Context, path string, body any, each func(line []byte) (bool, error)) error {
	resp, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		more, err := each(lines.Bytes())
		if err != nil || !more {
			return err
		}
	}
	err = lines.Err()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("answer of %s: %w", path, err)
	case err != nil:
		return fmt.Errorf("%w: the connection ended before the answer was complete: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: the connection ended before the answer was complete", ErrUnreachable)
}

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var payload bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&payload).Encode(body); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://sds-server"+path, &payload)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w at %s: %s", ErrUnreachable, c.socket, cause(err))
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{}
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil {
		return nil, fmt.Errorf("the server answered %s", resp.Status)
	}
	return nil, e
}

// cause is the innermost text of a dial error, without the URL that no person asked for.
func cause(err error) string {
	text := err.Error()
	return strings.TrimSpace(text[strings.LastIndex(text, ": ")+1:])
}

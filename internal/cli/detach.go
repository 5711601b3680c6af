package cli

import (
	"bytes"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
)

const defaultDetachKeys = "ctrl-p,ctrl-q"

func addDetachKeys(cmd *cobra.Command, keys *string) {
	cmd.Flags().StringVar(keys, "detach-keys", defaultDetachKeys, "keys that leave a terminal without ending the container; empty for none")
}

// parseDetachKeys reads keys separated by commas: a character, or ctrl- with one.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for key := range strings.SplitSeq(s, ",") {
		ctrl, hasCtrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(key) == 1:
			out = append(out, key[0])
		case hasCtrl && len(ctrl) == 1 && strings.ContainsAny(ctrl, "abcdefghijklmnopqrstuvwxyz@[\\]^_"):
			out = append(out, ctrl[0]&0x1f)
		default:
			return nil, api.Errorf(api.KindInvalid, "detach key %q is not known", key).Hint("write them like ctrl-p,ctrl-q or ctrl-a,d")
		}
	}
	return out, nil
}

// detachReader passes input on until the detach keys come. A beginning of them is
// held back until it is clear that it is none.
type detachReader struct {
	in       io.Reader
	keys     []byte
	held     int    // so many of the keys have come
	ready    []byte // read, and still to be given
	gone     bool
	detached chan struct{}
}

func newDetachReader(in io.Reader, keys []byte) *detachReader {
	return &detachReader{in: in, keys: keys, detached: make(chan struct{})}
}

func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.ready) == 0 {
		if d.gone {
			return 0, io.EOF
		}
		buf := make([]byte, max(len(p), 1))
		n, err := d.in.Read(buf)
		if len(d.keys) == 0 {
			return copy(p, buf[:n]), err
		}
		d.scan(buf[:n])
		if err != nil && !d.gone {
			d.ready = append(d.ready, d.keys[:d.held]...)
			d.held = 0
			if len(d.ready) == 0 {
				return 0, err
			}
		}
	}
	n := copy(p, d.ready)
	d.ready = d.ready[n:]
	return n, nil
}

func (d *detachReader) scan(in []byte) {
	for _, c := range in {
		// What is held is a beginning of the keys; with c it may still be one, or
		// its end may begin them anew.
		seen := append(bytes.Clone(d.keys[:d.held]), c)
		for len(seen) > 0 && !bytes.HasPrefix(d.keys, seen) {
			d.ready = append(d.ready, seen[0])
			seen = seen[1:]
		}
		d.held = len(seen)
		if d.held == len(d.keys) {
			d.gone = true
			close(d.detached)
			return
		}
	}
}

package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

const (
	// udpTimeout is how long one datagram may take. Two of them and a try over
	// TCP fit into the time that a question has.
	udpTimeout = 1500 * time.Millisecond
	// maxJunk replies that are not to our question mean that somebody guesses;
	// over TCP there is nothing to guess.
	maxJunk = 8
)

// errNoUDP says that UDP leads nowhere and TCP may.
var errNoUDP = errors.New("no usable reply over UDP")

// rcodeError is a reply that says no.
type rcodeError int

func (e rcodeError) Error() string {
	switch int(e) {
	case rcodeFormErr:
		return "FORMERR"
	case rcodeServFail:
		return "SERVFAIL"
	case rcodeNotImp:
		return "NOTIMP"
	case rcodeRefused:
		return "REFUSED"
	}
	return fmt.Sprintf("response code %d", int(e))
}

// ask gets the answer of one upstream: over UDP, again with a new ID and port
// when that stays silent, over TCP when the reply is cut off or UDP is of no
// use, without EDNS when the upstream does not know it.
func ask(ctx context.Context, to netip.AddrPort, q *query) (*entry, error) {
	e, err := askEDNS(ctx, to, q, true)
	var code rcodeError
	if errors.As(err, &code) && (code == rcodeFormErr || code == rcodeNotImp) {
		return askEDNS(ctx, to, q, false)
	}
	return e, err
}

func askEDNS(ctx context.Context, to netip.AddrPort, q *query, edns bool) (*entry, error) {
	question := appendQuestion(nil, q)
	var msg []byte
	err := errNoUDP
	for try := 0; try < 2 && isTimeout(err); try++ {
		if msg, err = askUDP(ctx, to, buildQuery(q, question, edns), question); err == nil {
			break
		}
	}
	if err == nil && binary.BigEndian.Uint16(msg[2:])&flagTC != 0 || isTimeout(err) {
		msg, err = askTCP(ctx, to, buildQuery(q, question, edns), question)
	}
	if err != nil {
		return nil, err
	}
	return readReply(msg, q)
}

func isTimeout(err error) bool { return errors.Is(err, errNoUDP) }

// readReply judges a reply to our question.
func readReply(msg []byte, q *query) (*entry, error) {
	if binary.BigEndian.Uint16(msg[4:]) == 0 {
		return nil, rcodeError(binary.BigEndian.Uint16(msg[2:]) & rcodeMask)
	}
	l, err := scan(msg, q.typ)
	switch {
	case err != nil:
		return nil, err
	case binary.BigEndian.Uint16(msg[2:])&flagTC != 0:
		return nil, fmt.Errorf("cut off over TCP: %w", errMalformed)
	case l.rcode != rcodeSuccess && l.rcode != rcodeNXDomain:
		return nil, rcodeError(l.rcode)
	}
	return &entry{msg: msg, layout: l}, nil
}

// buildQuery makes our own question of the client's: a fresh random ID, and of
// its EDNS only whether it wants signatures. What else a client says of itself
// there is not for the outside.
func buildQuery(q *query, question []byte, edns bool) []byte {
	b := make([]byte, headerLen, headerLen+len(question)+11)
	_, _ = rand.Read(b[:2]) // never fails (crypto/rand)
	binary.BigEndian.PutUint16(b[2:], flagRD|q.flags&(flagCD|flagAD))
	b[5] = 1
	b = append(b, question...)
	if edns {
		b[11] = 1
		b = appendOPT(b, q.do, rcodeSuccess, edeNone)
	}
	return b
}

// isReply tells whether a message answers our question. An error may come
// without the question, from servers that could not read it.
func isReply(msg, sent, question []byte) bool {
	if len(msg) < headerLen || msg[0] != sent[0] || msg[1] != sent[1] {
		return false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagQR == 0 || flags&opcodeMask != 0 {
		return false
	}
	if binary.BigEndian.Uint16(msg[4:]) == 0 {
		rcode := flags & rcodeMask
		return rcode != rcodeSuccess && rcode != rcodeNXDomain
	}
	return sameQuestion(msg, question)
}

// askUDP sends one datagram from a socket of its own: the kernel picks a random
// port, and drops what does not come from the upstream.
func askUDP(ctx context.Context, to netip.AddrPort, sent, question []byte) ([]byte, error) {
	conn, err := dial(ctx, "udp", to, udpTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(sent); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	buf := make([]byte, 4096)
	for junk := 0; junk < maxJunk; {
		n, err := conn.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil && isNetTimeout(err):
			return nil, fmt.Errorf("timeout: %w", errNoUDP)
		case err != nil:
			return nil, fmt.Errorf("receive: %w", err)
		case isReply(buf[:n], sent, question):
			return append([]byte(nil), buf[:n]...), nil
		}
		junk++
	}
	return nil, fmt.Errorf("replies to other questions: %w", errNoUDP)
}

func askTCP(ctx context.Context, to netip.AddrPort, sent, question []byte) ([]byte, error) {
	conn, err := dial(ctx, "tcp", to, 2*udpTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := writeTCP(conn, sent); err != nil {
		return nil, fmt.Errorf("send over TCP: %w", err)
	}
	msg, err := readTCP(conn, maxTCP)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("receive over TCP: %w", err)
	}
	if !isReply(msg, sent, question) {
		return nil, fmt.Errorf("reply to another question over TCP: %w", errMalformed)
	}
	return msg, nil
}

func dial(ctx context.Context, network string, to netip.AddrPort, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func isNetTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// writeTCP writes a message behind its length, in one segment if it can be.
func writeTCP(w io.Writer, msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, len(msg)+2), uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}

// readTCP reads one message of at most limit bytes.
func readTCP(r io.Reader, limit int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < headerLen || n > limit {
		return nil, fmt.Errorf("%d bytes: %w", n, errMalformed)
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

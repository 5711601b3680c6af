package wireguard

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// client is a connection to a device's process.
type client struct {
	c   *net.UnixConn
	r   *bufio.Reader
	pid int
}

// opTimeout bounds a call. A process that does not answer in that time is ended.
const opTimeout = 5 * time.Second

func dial(path string) (*client, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	cl := &client{c: c, r: bufio.NewReader(c)}
	raw, err := c.SyscallConn()
	if err == nil {
		var cred *unix.Ucred
		var cerr error
		err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		if err = cmp.Or(err, cerr); err == nil {
			cl.pid = int(cred.Pid)
		}
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("ask whose socket it is: %w", err)
	}
	return cl, nil
}

func (cl *client) close() { cl.c.Close() }

// call sends an operation and reads its answer up to the empty line.
func (cl *client) call(text string) ([]string, error) {
	if err := cl.c.SetDeadline(time.Now().Add(opTimeout)); err != nil {
		return nil, err
	}
	if _, err := cl.c.Write([]byte(text)); err != nil {
		return nil, err
	}
	var lines []string
	for {
		line, err := cl.r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			break
		}
		if code, ok := strings.CutPrefix(line, "errno="); ok && code != "0" {
			return nil, refused(code)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// errPortInUse: the kernel has given the UDP port to somebody else.
var errPortInUse = errors.New("it is used by another program of this host: `ss -lunp` names it")

func refused(code string) error {
	n, err := strconv.ParseInt(code, 10, 64)
	if err == nil && n == -int64(unix.EADDRINUSE) {
		return errPortInUse
	}
	if err == nil && n < 0 {
		return unix.Errno(-n)
	}
	return fmt.Errorf("it was refused with %s", code)
}

func (cl *client) set(c *change) error {
	_, err := cl.call("set=1\n" + strings.Join(c.lines(), "\n") + "\n\n")
	return err
}

// lines are a change in WireGuard's configuration protocol.
func (c *change) lines() (out []string) {
	if c.private != nil {
		out = append(out, "private_key="+hex.EncodeToString(c.private[:]))
	}
	if c.port != nil {
		out = append(out, "listen_port="+strconv.Itoa(int(*c.port)))
	}
	for i := range c.peers {
		p := &c.peers[i]
		out = append(out, "public_key="+hex.EncodeToString(p.key[:]))
		if p.remove {
			out = append(out, "remove=true")
			continue
		}
		out = append(out, "endpoint="+p.endpoint.String(), "persistent_keepalive_interval="+strconv.Itoa(p.keepAlive), "replace_allowed_ips=true")
		for _, a := range p.allowed {
			out = append(out, "allowed_ip="+a.String())
		}
	}
	return out
}

func (cl *client) get() (*state, error) {
	lines, err := cl.call("get=1\n\n")
	if err != nil {
		return nil, err
	}
	return parseState(lines)
}

func parseKey(text string) (k plan.Key, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(k) {
		return k, errors.New("no key")
	}
	return plan.Key(b), nil
}

func parseState(lines []string) (*state, error) {
	s := &state{peers: map[plan.Key]peerState{}}
	var of plan.Key
	var sec, nsec int64
	p := peerState{}
	done := func() {
		if of != (plan.Key{}) {
			if sec != 0 || nsec != 0 {
				p.handshake = time.Unix(sec, nsec)
			}
			s.peers[of] = p
		}
		p, sec, nsec = peerState{}, 0, 0
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "=")
		var err error
		switch name {
		case "private_key":
			var k plan.Key
			k, err = parseKey(value)
			s.private = plan.Secret(k)
		case "listen_port":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			s.port = uint16(n)
		case "public_key":
			done()
			of, err = parseKey(value)
		case "endpoint":
			p.endpoint, err = netip.ParseAddrPort(value)
		case "allowed_ip":
			var a netip.Prefix
			a, err = netip.ParsePrefix(value)
			p.allowed = append(p.allowed, a)
		case "persistent_keepalive_interval":
			p.keepAlive, err = strconv.Atoi(value)
		case "rx_bytes":
			p.received, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			p.sent, err = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("read the device's %s: %w", name, err)
		}
	}
	done()
	return s, nil
}

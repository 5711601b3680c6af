package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

func TestErrorMapping(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		kind   string
		code   hcn.ErrorCode
	}{
		{hcn.Errorf(hcn.ErrNetworkNotFound, "x"), 404, api.KindNotFound, hcn.ErrNetworkNotFound},
		{fmt.Errorf("attach: %w", hcn.Errorf(hcn.ErrEndpointAlreadyAttached, "x")), 409, api.KindConflict, hcn.ErrEndpointAlreadyAttached},
		{hcn.Errorf(hcn.ErrInvalidJSON, "x"), 400, api.KindInvalid, hcn.ErrInvalidJSON},
		{hcn.Errorf(hcn.ErrNotImplemented, "x"), 501, api.KindUnsupported, hcn.ErrNotImplemented},
		{hcn.Errorf(hcn.ErrManagerStopped, "x"), 503, api.KindUnavailable, hcn.ErrManagerStopped},
		{api.Errorf(api.KindInvalid, "x"), 400, api.KindInvalid, hcn.ErrInvalidParameter},
		{api.Errorf(api.KindNotFound, "x"), 404, api.KindNotFound, hcn.ErrElementNotFound},
		{fmt.Errorf("start: %w", api.Errorf(api.KindConflict, "x")), 409, api.KindConflict, hcn.ErrEntityHasReferences},
		{api.Errorf(api.KindUnsupported, "x"), 501, api.KindUnsupported, hcn.ErrRequestUnsupported},
		{api.Errorf(api.KindUnavailable, "x"), 503, api.KindUnavailable, hcn.ErrManagerStopped},
		{errors.New("x"), 500, api.KindInternal, hcn.ErrUnspecified},
	} {
		ours, theirs := apiError(tc.err), hcnError(tc.err)
		if ours.Kind != tc.kind || ours.HTTPStatus() != tc.status || theirs.Code != tc.code || theirs.HTTPStatus() != tc.status {
			t.Errorf("%v: %s %d, %s %d", tc.err, ours.Kind, ours.HTTPStatus(), theirs.Code.Name(), theirs.HTTPStatus())
		}
		if !strings.Contains(ours.Message, "x") || !strings.Contains(theirs.Detail, "x") {
			t.Errorf("%v: the words are lost: %q, %q", tc.err, ours.Message, theirs.Detail)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/hcn/v2/networks", "/v1/containers", "/hns/v1/networks/"} {
		got := r.raw(t, "POST", path, `{"Name":"`+strings.Repeat("x", maxBody)+`"}`)
		if !strings.Contains(got, "larger than 4 MiB") {
			t.Errorf("%s: %.200s", path, got)
		}
	}
	if got := r.raw(t, "POST", "/v1/containers", `{"image":"`+strings.Repeat("x", maxBody-100)+`"}`); !strings.HasPrefix(got, "200") {
		t.Errorf("just below the limit: %.200s", got)
	}
}

// TestDepthLimit: a document that could be stored and never be read again is refused at every door.
func TestDepthLimit(t *testing.T) {
	r := newRig(t)
	deep := strings.Repeat(`{"a":`, 9999) + "1" + strings.Repeat("}", 9999)
	for path, member := range map[string]string{
		"/hcn/v2/networks": "AdditionalParams", "/hns/v1/networks/": "Policies", "/v1/containers": "labels", "/v1/compartments": "endpoints",
	} {
		got := r.raw(t, "POST", path, `{"SchemaVersion":{"Major":2},"Name":"deep",`+strconv.Quote(member)+`:`+deep+`}`)
		if !strings.Contains(got, "nests deeper than 64 levels") || !strings.Contains(got, member) || !strings.Contains(got, "make it flatter") {
			t.Errorf("%s: %.300s", path, got)
		}
	}
}

func TestStarting(t *testing.T) {
	ready := make(chan struct{})
	r := newRig(t, func(o *Options) { o.Ready = ready })
	ctx := t.Context()
	_, err := r.Network(ctx, hcn.NewGUID())
	var e *hcn.Error
	if !errors.As(err, &e) || e.Code != hcn.ErrManagerStopped || e.HTTPStatus() != http.StatusServiceUnavailable {
		t.Errorf("a network: %v", err)
	}
	if _, err := r.HCNVersion(ctx); !errors.Is(err, hcn.ErrManagerStopped) {
		t.Errorf("version 1: %v", err)
	}
	if _, err := r.Containers(ctx); !api.IsKind(err, api.KindUnavailable) {
		t.Errorf("containers: %v", err)
	}
	if doc, err := r.OpenAPI(ctx); err != nil || len(doc) < 1000 {
		t.Errorf("the description needs no engine: %v", err)
	}
	close(ready)
	if _, err := r.Network(ctx, hcn.NewGUID()); !errors.Is(err, hcn.ErrNetworkNotFound) {
		t.Errorf("then: %v", err)
	}
}

func TestStopEndsWaits(t *testing.T) {
	r := newRig(t)
	r.web(t)
	done := make(chan error, 1)
	go func() {
		_, err := r.WaitContainer(t.Context(), "web", "")
		done <- err
	}()
	for len(r.fake.took()) == 0 {
		<-time.After(time.Millisecond)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if err := <-done; !api.IsKind(err, api.KindUnavailable) {
		t.Errorf("a wait: %v", err)
	}
	if _, err := os.Lstat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	_, err := r.Info(t.Context())
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, r.socket) || !strings.Contains(e.Next, "bulkhead daemon") {
		t.Errorf("without a daemon: %#v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "s")
	ln, err := Listen(path, "root")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket is %v, %v", info, err)
	}
	if _, err := Listen(path, "root"); err == nil || !strings.Contains(err.Error(), "answers there already") {
		t.Errorf("a second daemon: %v", err)
	}
	// A daemon that was killed leaves its socket.
	ln.unix.Close()
	again, err := Listen(path, "root")
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	if err := ln.Close(); err == nil {
		t.Error("closing twice is no error")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first daemon took the socket of the second: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, "root"); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "run", "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAllows(t *testing.T) {
	with, without := &Listener{gid: 7, found: true}, &Listener{}
	for _, tc := range []struct {
		peer          Peer
		with, without bool
	}{
		{Peer{UID: 0, GID: 0}, true, true},
		{Peer{UID: 5, GID: 7}, true, false},
		{Peer{UID: 5, GID: 5, Groups: []uint32{6, 7}}, true, false},
		{Peer{UID: 5, GID: 0}, false, false},
		{Peer{UID: 5, GID: 5, Groups: []uint32{0}}, false, false},
	} {
		if with.allows(tc.peer) != tc.with || without.allows(tc.peer) != tc.without {
			t.Errorf("%+v: %t with the group, %t without", tc.peer, with.allows(tc.peer), without.allows(tc.peer))
		}
	}
}

// TestPeers connects as other users, from threads that have given root up for good.
func TestPeers(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("this test needs root")
		}
		t.Skip("this test needs root")
	}
	r := newRig(t)
	// Somebody has opened the socket to all: what the kernel says about the peer still counts.
	if err := errors.Join(os.Chmod(filepath.Dir(r.socket), 0o755), os.Chmod(r.socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		uid    int
		groups []int
		want   string
	}{
		{0, nil, "HTTP/1.1 200 OK"},
		{65534, nil, "HTTP/1.1 403 Forbidden"},
		{65534, []int{0}, "HTTP/1.1 403 Forbidden"}, // the group of the daemon does not exist, which must not mean group 0
	} {
		got, err := getAs(r.socket, tc.uid, tc.groups)
		if err != nil || !strings.HasPrefix(got, tc.want) {
			t.Errorf("user %d in %v: %.60q, %v; want %s", tc.uid, tc.groups, got, err, tc.want)
		}
		if tc.uid != 0 && !strings.Contains(got, `"next":"become root, or a member of the socket's group"`) {
			t.Errorf("user %d: %q", tc.uid, got)
		}
	}
	if !strings.Contains(r.log.String(), "listening for root only") {
		t.Error("the log does not say that the group is missing")
	}
	if !strings.Contains(r.log.String(), "uid=65534") {
		t.Error("the log does not name the peer")
	}
}

func TestPeerGroups(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this test needs root")
	}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := Listen(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	many := make([]int, 100) // more than the first guess
	for i := range many {
		many[i] = 1000 + i
	}
	go func() { _, _ = getAs(path, 0, many) }()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if p := c.(*peerConn).peer; len(p.Groups) != 100 || p.Groups[99] != 1099 || p.PID != int32(os.Getpid()) {
		t.Errorf("the peer is %+v", p)
	}
}

// getAs asks for a report. The thread that becomes another user is never used again.
func getAs(socket string, uid int, groups []int) (string, error) {
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		text, err := func() (string, error) {
			list := make([]uint32, len(groups)+1) // one more, so that it has an address when empty
			for i, g := range groups {
				list[i] = uint32(g)
			}
			if err := setThreadUser(list[:len(groups)], uid); err != nil {
				return "", err
			}
			conn, err := net.Dial("unix", socket)
			if err != nil {
				return "", err
			}
			defer conn.Close()
			fmt.Fprint(conn, "GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			b, err := io.ReadAll(conn)
			return string(b), err
		}()
		done <- answer{text, err}
	}()
	a := <-done
	return a.text, a.err
}

// setThreadUser makes system calls of one thread; those of package syscall change all threads.
func setThreadUser(groups []uint32, uid int) error {
	if err := rawSetgroups(groups); err != nil {
		return err
	}
	if uid == 0 {
		return nil
	}
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			return errno
		}
	}
	return nil
}

func TestClientErrors(t *testing.T) {
	if _, err := client.New("tcp://10.0.0.1:1"); !api.IsKind(err, api.KindInvalid) {
		t.Errorf("another kind of address: %v", err)
	}
	c, err := client.New(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecContainer(t.Context(), "x", api.ExecSpec{Args: []string{"x"}}, api.Streams{}); !api.IsKind(err, api.KindUnavailable) {
		t.Errorf("no socket: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	r := newRig(t)
	doc := `{"SchemaVersion":{"Major":2},"Type":"Private","a\"b\nc":1,"` + strings.Repeat("é", 300) + `":2,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24"}]}]}`
	if _, err := r.HCN(t.Context(), "POST", "/networks", nil, []byte(doc)); err != nil {
		t.Fatal(err)
	}
	if len(r.warned) != 1 || !strings.HasPrefix(r.warned[0], "ignored members: a\"b\nc, ") || len(r.warned[0]) > 400 {
		t.Errorf("warned of %q", r.warned)
	}
	r.warned = nil
	kept := `{"SchemaVersion":{"Major":2},"FrontendVIPs":["10.96.0.1"],"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":80,"Flags":8}]}`
	if _, err := r.HCN(t.Context(), "POST", "/loadbalancers", nil, []byte(kept)); err != nil {
		t.Fatal(err)
	}
	if len(r.warned) != 1 || r.warned[0] != "ignored members: PortMappings[0].InternalPort (EnablePreserveDip: back ends see port 80)" {
		t.Errorf("warned of %q", r.warned)
	}
}

// TestTurnedDefaultIsTold: the first rule of a direction blocks what it does not allow, and whoever writes it is told.
func TestTurnedDefaultIsTold(t *testing.T) {
	r := newRig(t)
	const net, ep = "AAAAAAAA-0000-4000-8000-000000000001", "BBBBBBBB-0000-4000-8000-000000000001"
	call := func(path, doc string, want ...string) {
		t.Helper()
		r.warned = nil
		if _, err := r.HCN(t.Context(), "POST", path, nil, []byte(doc)); err != nil {
			t.Fatal(err)
		}
		if len(r.warned) != len(want) {
			t.Fatalf("%s: warned of %q, want %q", path, r.warned, want)
		}
		for i, w := range want {
			if !strings.HasPrefix(r.warned[i], "direction "+w+":") {
				t.Errorf("%s: warned of %q, want %q", path, r.warned[i], w)
			}
		}
	}
	change := func(request, rules string) string {
		return `{"ResourceType":"Policy","RequestType":"` + request + `","Settings":{"Policies":[` + rules + `]}}`
	}
	rule := func(kind, dir string) string {
		return `{"Type":"` + kind + `","Settings":{"Action":"Block","Direction":"` + dir + `","Protocols":"6"}}`
	}
	call("/networks", `{"ID":"`+net+`","SchemaVersion":{"Major":2},"Type":"Private","Ipams":[{"Subnets":[{"IpAddressPrefix":"10.1.0.0/24"}]}]}`)
	call("/endpoints", `{"ID":"`+ep+`","SchemaVersion":{"Major":2},"HostComputeNetwork":"`+net+`"}`)
	call("/endpoints/"+ep+"/modify", change("Add", rule("ACL", "In")), "In")
	call("/endpoints/"+ep+"/modify", change("Update", rule("ACL", "In")+","+rule("ACL", "Out")), "Out")
	call("/endpoints/"+ep+"/modify", change("Reset", `{"Type":"ACL"}`))
	call("/endpoints/"+ep+"/modify", change("Update", rule("ACL", "In")+`,{"Type":"ACL","Settings":{"Action":"Allow","Direction":"In","Priority":65500}}`))
	call("/networks/"+net+"/modify", change("Add", rule("NetworkACL", "In")+","+rule("NetworkACL", "Out")), "In", "Out")
}

// FuzzServer sends requests that nobody should: each has an answer, errors are records, and nothing makes the daemon panic.
func FuzzServer(f *testing.F) {
	for _, seed := range [][3]string{
		{"POST", "/hcn/v2/networks?id=%7B0%7D", `{"SchemaVersion":{"Major":2},"Ipams":[{"Subnets":[{}]}]}`},
		{"GET", "/hcn/v2/endpoints?query=%7B%22Filter%22%3A%22%7B%7D%22%7D", ""},
		{"POST", "/hns/v1/endpoints/00000000-0000-4000-8000-000000000001", `{"Policies":[{"Type":"NAT"}]}`},
		{"POST", "/hns/v1/networks/", `{"Subnets":[{"AddressPrefix":"0.0.0.0/0"}],"Policies":[{}]}`},
		{"POST", "/v1/containers", `{"image":"a","mounts":[{"type":"bind"}]}`},
		{"DELETE", "/v1/images/../../etc", ""},
		{"POST", "/v1/containers/%2e%2e/exec", `{"args":["x"]}`},
		{"GET", "/hns/v1", "["},
		{"POST", "/v1/images/import?reference=x&config=%7B", "tar"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, method, target, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://x", strings.NewReader(body))
		if err != nil {
			return
		}
		u, err := req.URL.Parse(target)
		if err != nil || strings.Contains(u.Path, "/events") && method == http.MethodGet || u.Query().Has("stream") {
			return // streams do not end by themselves
		}
		req.URL = u
		ctx := context.WithValue(req.Context(), peerKey{}, admission{allowed: true})
		w := httptest.NewRecorder()
		s := New(Options{Backend: newFake(), Log: log})
		s.Handler().ServeHTTP(w, req.WithContext(ctx))
		if w.Code == http.StatusInternalServerError && !strings.Contains(body, "panic") {
			t.Errorf("%s %q %q: %s", method, target, body, w.Body)
		}
		if w.Code >= 400 && !strings.HasPrefix(w.Body.String(), `{"`) {
			t.Errorf("%s %q: status %d without an error record: %q", method, target, w.Code, w.Body)
		}
	})
}

// A parameter that nobody reads is refused where the call is ours, and named where HCN wants it ignored.
func TestUnknownParameters(t *testing.T) {
	r := newRig(t)
	for path, want := range map[string]string{
		"/v1/containers/web/logs?tial=3": `query parameter \"tial\" is not known`,
		"/v1/images?all=1":               "this call has none",
		"/hcn/v2/networks?qeury=x":       `299 - "ignored query parameters: qeury"`,
		"/hns/v1/networks/?x=1&b=2":      `299 - "ignored query parameters: b, x"`,
	} {
		if got := r.raw(t, "GET", path, ""); !strings.Contains(got, want) {
			t.Errorf("%s: %.400s\nwant %s", path, got, want)
		}
	}
}

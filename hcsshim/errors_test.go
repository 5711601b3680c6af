package hcsshim_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcsshim"
)

// TestWords: there are users who compare the words of an error, not its code.
func TestWords(t *testing.T) {
	dir, err := os.MkdirTemp("", "hns") //nolint:usetesting // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	t.Setenv("BULKHEAD_HOST", "unix://"+socket)
	attach := func() error { return (&hcsshim.HNSEndpoint{Id: "1"}).HostAttach(1) }
	if err := attach(); err == nil || !strings.Contains(err.Error(), "hnsCall failed in Win32: The interface is unknown. (0x6b5) ") {
		t.Errorf("no daemon: %v", err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"Success":false,"Error":"This endpoint is already attached to the switch. it is in namespace 2","ErrorCode":2151350292}`)
	})}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	if err := attach(); err == nil || err.Error() != "hns failed with error : This endpoint is already attached to the switch. it is in namespace 2" || hcsshim.IsNotExist(err) {
		t.Errorf("attached: %v", err)
	}
}

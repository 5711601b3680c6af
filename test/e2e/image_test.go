package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
)

// writeBox makes the root file system of the image "box", as a tar: busybox under the names of its commands.
// echoFile is testdata/echo.go, built: busybox has no server for UDP.
func writeBox(file, echoFile string) error {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	echo, err := os.ReadFile(echoFile)
	if err != nil {
		return err
	}
	applets, err := exec.CommandContext(context.Background(), "/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	put := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := w.Write([]byte(content))
		err = errors.Join(err, werr)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root", "home", "var", "www"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, string(program))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/echo-server", Mode: 0o755}, string(echo))
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
		"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n")
	put(tar.Header{Typeflag: tar.TypeReg, Name: "www/index.html", Mode: 0o644}, "hello from box\n")
	// Says who asked: what a web server sees is what a published port must keep.
	put(tar.Header{Typeflag: tar.TypeReg, Name: "www/cgi-bin/who", Mode: 0o755},
		"#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\nbox sees %s\\n' \"$REMOTE_ADDR\"\n")
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}

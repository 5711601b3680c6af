package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/moby/sys/user"
)

// maxAccountFile bounds what we read of a container's account files.
const maxAccountFile = 4 << 20

// account is who a process runs as.
type account struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// resolveUser reads user[:group] with the account files of a root file system.
// Without a user it is root; numbers need no entry.
func resolveUser(root, spec string) (account, error) {
	return resolveUserBy(func(name string) ([]byte, error) { return readInRoot(root, name, maxAccountFile) }, spec)
}

// resolveUserBy does so with account files that somebody else reads.
func resolveUserBy(read func(name string) ([]byte, error), spec string) (account, error) {
	files := make([]io.Reader, 2)
	for i, name := range []string{"/etc/passwd", "/etc/group"} {
		data, err := read(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return account{}, fmt.Errorf("resolve user %q: %w", spec, err)
		}
		files[i] = bytes.NewReader(data)
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, files[0], files[1])
	if err != nil {
		return account{}, fmt.Errorf("resolve user %q: %w: %w", spec, ErrInvalid, err)
	}
	a := account{uid: uint32(u.Uid), gid: uint32(u.Gid), home: u.Home}
	// With its own group among the further ones, a process cannot shed it to get
	// past permissions that are lower for the group than for others.
	a.groups = []uint32{a.gid}
	for _, g := range u.Sgids {
		if uint32(g) != a.gid {
			a.groups = append(a.groups, uint32(g))
		}
	}
	if a.home == "" {
		a.home = "/"
	}
	return a, nil
}

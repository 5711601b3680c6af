package bulkhead_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/bulkhead-net/bulkhead/"

// mayImport says which packages of this module a package may import. Patterns are those of path.Match, "everything" is
// everything. A new package fails the test until it is listed here, with a sentence in docs/architecture.md about what
// it owns. Tests may import what their package may, and testhost.
//
// The two lines that carry the design: engine never imports dataplane, so that the whole loop is tested without a kernel;
// and dataplane packages never import each other, for what they share is the plan.
var mayImport = map[string]string{
	"hcn":                    "",
	"api":                    "hcn",
	"client":                 "hcn api",
	"cmd/*":                  "everything",
	"hcsshim":                "hcn api client",
	"hcsshim/hcn":            "hcn api client",
	"internal/cli":           "hcn api client",
	"internal/cluster":       "hcn api internal/dataplane/underlay internal/engine internal/overlay internal/plan",
	"internal/cni":           "hcn api client",
	"internal/dataplane/*":   "hcn internal/durable internal/plan",
	"internal/dns":           "hcn internal/plan",
	"internal/docker":        "hcn api client internal/durable",
	"internal/durable":       "",
	"internal/engine":        "hcn api internal/store internal/ipam internal/plan",
	"internal/image":         "",
	"internal/ipam":          "",
	"internal/kube":          "hcn api client",
	"internal/metrics":       "",
	"internal/overlay":       "hcn internal/durable internal/plan",
	"internal/plan":          "hcn",
	"internal/plan/plantest": "hcn internal/plan",
	"internal/sandbox/*":     "hcn api internal/sandbox/vm internal/sandbox/vm/*",
	"internal/sandbox/vm/*":  "internal/sandbox/vm/*",
	"internal/server":        "hcn api internal/engine internal/ui",
	"internal/store":         "hcn",
	"internal/testhost":      "",
	"internal/ui":            "",
	"test/*":                 "everything",
}

// testsMayImport is what tests may import beyond that: the server is tested through the real client, and what the switch
// decides over plans and packets drawn at random.
var testsMayImport = map[string]string{
	"internal/server":            "client",
	"internal/plan":              "internal/plan/plantest",
	"internal/dataplane/vswitch": "internal/plan/plantest",
}

// touchesKernel are the packages that may talk to the kernel about networks, namespaces and mounts.
var touchesKernel = []string{"internal/dataplane/*", "internal/sandbox/*", "internal/sandbox/vm/*", "internal/testhost", "test/*"}

// kernelLibraries, and all packages below them, are for touchesKernel only; so are kernelCalls of syscall and x/sys/unix.
var (
	kernelLibraries = []string{
		"github.com/cilium/ebpf", "github.com/google/nftables", "github.com/mdlayher/netlink", "github.com/moby/sys/mount",
		"github.com/ti-mo/conntrack", "github.com/vishvananda/netlink", "github.com/vishvananda/netns", "golang.zx2c4.com/wireguard/wgctrl", "sigs.k8s.io/knftables",
	}
	kernelCalls = []string{
		"Setns", "Unshare", "Mount", "Unmount", "MountSetattr", "MoveMount", "OpenTree", "Fsopen", "Fsmount", "PivotRoot",
	}
)

// ownProgram are libraries that make a program large and slow to start, with who may have them: programs of their own and what is in those.
var ownProgram = map[string][]string{
	"k8s.io/client-go":       {"internal/kube", "cmd/bulkhead-kube-proxy", "test/*"},
	module + "internal/kube": {"internal/kube", "cmd/bulkhead-kube-proxy"},
}

func TestImports(t *testing.T) {
	packages := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != "." && (strings.HasPrefix(name, ".") || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(file))
		if !strings.HasSuffix(file, ".go") || pkg == "." {
			return nil
		}
		packages[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, v := range violations(pkg, strings.HasSuffix(file, "_test.go"), f) {
			t.Errorf("%s: %s", file, v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !packages["internal/testhost"] {
		t.Errorf("the walk found only %v", packages)
	}
}

// TestImportsRefuses keeps the check itself honest.
func TestImportsRefuses(t *testing.T) {
	for _, tc := range []struct {
		pkg, body, want string
		test            bool
	}{
		{pkg: "hcn", body: `import "net/netip"`},
		{pkg: "hcn", body: `import "` + module + `internal/plan"`, want: "hcn may not import internal/plan"},
		{
			pkg: "internal/engine", body: `import "` + module + `internal/dataplane/nat"`,
			want: "internal/engine may not import internal/dataplane/nat",
		},
		{
			pkg: "internal/dataplane/nat", body: `import "` + module + `internal/dataplane/netdev"`,
			want: "internal/dataplane/nat may not import internal/dataplane/netdev",
		},
		{pkg: "internal/dataplane/nat", body: `import "` + module + `internal/plan"`},
		{pkg: "cmd/bulkhead", body: `import "` + module + `internal/dataplane/nat"`},
		{
			pkg: "cmd/bulkhead", body: `import "k8s.io/client-go/rest"`,
			want: "cmd/bulkhead may not import k8s.io/client-go/rest: that is for a program of its own",
		},
		{
			pkg: "cmd/bulkhead", body: `import "` + module + `internal/kube"`,
			want: "cmd/bulkhead may not import " + module + "internal/kube: that is for a program of its own",
		},
		{pkg: "cmd/bulkhead-kube-proxy", body: `import "` + module + `internal/kube"`},
		{pkg: "internal/util", body: ``, want: "internal/util is not in the table of imports_test.go"},
		{pkg: "internal/dns", body: `import "` + module + `internal/testhost"`, test: true},
		{pkg: "internal/dns", body: `import "` + module + `internal/testhost"`, want: "internal/dns may not import internal/testhost"},
		{pkg: "internal/server", body: `import "` + module + `client"`, test: true},
		{pkg: "internal/server", body: `import "` + module + `client"`, want: "internal/server may not import client"},
		{pkg: "internal/dns_test", body: ``, want: "internal/dns_test is not in the table of imports_test.go"},
		{
			pkg: "cmd/bulkhead", body: `import "github.com/cilium/ebpf/link"`,
			want: "cmd/bulkhead may not import github.com/cilium/ebpf/link: it talks to the kernel",
		},
		{pkg: "internal/dataplane/vswitch", body: `import "github.com/cilium/ebpf/link"`},
		{
			pkg: "internal/image", body: `import "golang.org/x/sys/unix"; func f() { unix.Mount("", "", "", 0, "") }`,
			want: "internal/image may not call unix.Mount",
		},
		{
			pkg: "internal/image", body: `import x "syscall"; var f = x.Setns`,
			want: "internal/image may not call syscall.Setns",
		},
		{pkg: "internal/image", body: `import "golang.org/x/sys/unix"; var f = unix.Flock`},
		{pkg: "internal/sandbox/process", body: `import "golang.org/x/sys/unix"; var f = unix.Mount`},
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x; "+tc.body, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(violations(tc.pkg, tc.test, f), "; "); got != tc.want {
			t.Errorf("%s, %s: %q, want %q", tc.pkg, tc.body, got, tc.want)
		}
	}
}

// violations lists what a file of a package does against the tables above.
func violations(pkg string, test bool, f *ast.File) []string {
	allowed, listed := rule(pkg)
	if !listed {
		return []string{pkg + " is not in the table of imports_test.go"}
	}
	if test {
		allowed = append(allowed, pkg, "internal/testhost")
		allowed = append(allowed, strings.Fields(testsMayImport[pkg])...)
	}
	kernel := matchesAny(touchesKernel, pkg)
	var found []string
	syscalls := map[string]string{} // the name that the file uses → package
	for _, imp := range f.Imports {
		target, _ := strconv.Unquote(imp.Path.Value)
		if target == "syscall" || target == "golang.org/x/sys/unix" {
			name := path.Base(target)
			if imp.Name != nil {
				name = imp.Name.Name
			}
			syscalls[name] = path.Base(target)
		}
		for lib, who := range ownProgram {
			if strings.HasPrefix(target+"/", lib+"/") && !matchesAny(who, pkg) {
				found = append(found, fmt.Sprintf("%s may not import %s: that is for a program of its own", pkg, target))
			}
		}
		own, ours := strings.CutPrefix(target, module)
		switch {
		case ours && !slices.Contains(allowed, "everything") && !matchesAny(allowed, own):
			found = append(found, fmt.Sprintf("%s may not import %s", pkg, own))
		case !kernel && slices.ContainsFunc(kernelLibraries, func(lib string) bool { return strings.HasPrefix(target+"/", lib+"/") }):
			found = append(found, fmt.Sprintf("%s may not import %s: it talks to the kernel", pkg, target))
		}
	}
	if kernel || test { // a test may make itself a namespace to break things in
		return found
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && syscalls[x.Name] != "" && slices.Contains(kernelCalls, sel.Sel.Name) {
			found = append(found, fmt.Sprintf("%s may not call %s.%s", pkg, syscalls[x.Name], sel.Sel.Name))
		}
		return true
	})
	return found
}

// rule looks a package up in mayImport.
func rule(pkg string) (allowed []string, listed bool) {
	for pattern, imports := range mayImport {
		if ok, _ := path.Match(pattern, pkg); ok {
			return strings.Fields(imports), true
		}
	}
	return nil, false
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, pkg)
		return ok
	})
}

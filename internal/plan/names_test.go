package plan

import (
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestNamespaceNames: what merely begins like a compartment of ours is somebody else's.
func TestNamespaceNames(t *testing.T) {
	const id = "0123ABCD-0000-4000-8000-000000000001"
	for name, want := range map[string]bool{
		"hns-" + hcn.GUID(id).Lower(): true, "hns-" + string(ResolverNamespace): true, "hns-" + string(SecureNamespace): true,
		"hns-" + id: false, "hns-{" + hcn.GUID(id).Lower() + "}": false, hcn.GUID(id).Lower(): false,
		"hns-": false, "hns-mine": false, "hns-resolver2": false, "": false,
	} {
		if got := IsNamespaceName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

package api_test

import (
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
)

func TestIsName(t *testing.T) {
	for _, s := range []string{"a", "0", "Web-1.prod_x", strings.Repeat("z", 128)} {
		if !api.IsName(s) {
			t.Errorf("IsName(%.20q) = false, want true", s)
		}
	}
	for _, s := range []string{"", ".", "..", "-x", "_x", ".gone-x", "a/b", "a b", "a\n", "ä", "a\x00", strings.Repeat("z", 129)} {
		if api.IsName(s) {
			t.Errorf("IsName(%.20q) = true, want false", s)
		}
	}
}

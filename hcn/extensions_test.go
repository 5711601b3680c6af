package hcn

import "testing"

func TestAliasNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"app": true, "app.local": true, "*.app": true, "*.app.local": true,
		"": false, "*": false, "*.": false, "*app": false, "a.*.b": false, "*a.b": false, "*.*.a": false,
	} {
		err := AliasesSetting{Names: []string{name}}.validate("Settings")
		if (err == nil) != ok {
			t.Errorf("alias %q: %v", name, err)
		}
	}
}

package cli

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
)

// wantNext checks that an error says what to do.
func wantNext(t *testing.T, err error) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Next == "" || e.Message == "" {
		t.Errorf("%v has no next step", err)
	}
}

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80":                   "loopback tcp 8080>80",
		"8080:80/TCP":               "loopback tcp 8080>80",
		"53:53/udp":                 "loopback udp 53>53",
		"80":                        "loopback tcp 0>80",
		"80-82":                     "loopback tcp 0>80, loopback tcp 0>81, loopback tcp 0>82",
		"8000-8002:80-82":           "loopback tcp 8000>80 *3",
		"127.0.0.1:8080:80":         "127.0.0.1 tcp 8080>80",
		"localhost:8080:80":         "loopback tcp 8080>80",
		"192.0.2.1::80":             "192.0.2.1 tcp 0>80",
		"[::1]:8080:80":             "::1 tcp 8080>80",
		"[2001:db8::1]:8080:80/udp": "2001:db8::1 udp 8080>80",
		"[::1]::80":                 "::1 tcp 0>80",
		"1-65535:1-65535":           "loopback tcp 1>1 *65535",
		"":                          "", ":": "", ":80": "", "80:": "", "0:80": "", "80:0": "", "65536:80": "", "+80:80": "", "-80": "", "80-": "",
		"82-80:1-3": "", "80-81:80": "", "80:80/sctp": "", "80:80/": "", "0.0.0.0:80:80": "", "[::]:80:80": "", "::1:80:80": "",
		"[::1]": "", "[::1]:80": "", "[]:80:80": "", "[::ffff:1.2.3.4]:80:80": "", "[fe80::1%eth0]:80:80": "", "host:80:80": "",
		"1.2.3.4:80:80:80": "", "224.0.0.1:80:80": "", "[1.2.3.4:80:80": "", "80 :80": "", "٨٠:80": "",
	} {
		ports, err := parsePublish(in, exposeLoopback)
		var texts []string
		for _, p := range ports {
			text := p.Expose + " " + p.Protocol + " " + strings.ReplaceAll(jsonText(t, []uint16{p.HostPort, p.ContainerPort}), ",", ">")
			text = strings.NewReplacer("[", "", "]", "").Replace(text)
			if p.Count > 1 {
				text += " *" + jsonText(t, p.Count)
			}
			texts = append(texts, text)
		}
		if got := strings.Join(texts, ", "); got != want {
			t.Errorf("%q: %q, want %q (%v)", in, got, want, err)
		}
		if want == "" {
			wantNext(t, err)
		}
	}
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestExpose(t *testing.T) {
	for in, want := range map[string]string{
		"": "loopback", "loopback": "loopback", "lan": "lan", "all": "all", "192.0.2.1": "192.0.2.1", "[2001:DB8::1]": "2001:db8::1",
		"LAN": "", "0.0.0.0": "", "::": "", "eth0": "", "ff02::1": "",
	} {
		got, err := parseExpose(in)
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if want == "" {
			wantNext(t, err)
		}
	}
	_, _, err := publishFlags{publish: []string{"127.0.0.1:80:80"}, expose: "all"}.parse()
	wantNext(t, err) // it would have no effect
	_, _, err = publishFlags{expose: "all"}.parse()
	wantNext(t, err)
}

// TestAnnounce holds that nothing is published wider than loopback unsaid.
func TestAnnounce(t *testing.T) {
	var b strings.Builder
	announce(&b, []api.PublishedPort{
		{Protocol: "tcp", Expose: "loopback", HostPort: 1},
		{Protocol: "tcp", Expose: "127.0.0.1", HostPort: 2},
		{Protocol: "tcp", Expose: "::1", HostPort: 3},
		{Protocol: "tcp", Expose: "lan", HostPort: 4},
		{Protocol: "udp", Expose: "all", HostPort: 5, Count: 3},
		{Protocol: "tcp", Expose: "2001:db8::1", ContainerPort: 80},
	}, func(api.PublishedPort) string { return "me" })
	want := `published 4/tcp on every LAN address (asked by me)
published 5-7/udp on every address (asked by me)
published a free port for 80/tcp on 2001:db8::1 (asked by me)
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestParseMounts(t *testing.T) {
	volume := func(s string) (api.Mount, error) { return parseVolume(s, "/home/me") }
	mount := func(s string) (api.Mount, error) { return parseMount(s, "/home/me") }
	for _, tc := range []struct {
		parse    func(string) (api.Mount, error)
		in, want string
	}{
		{volume, "/a:/b", `{"type":"bind","source":"/a","target":"/b"}`},
		{volume, "/a/../c:/b/:ro", `{"type":"bind","source":"/c","target":"/b","readOnly":true}`},
		{volume, "./x:/b:rshared,ro,rw", `{"type":"bind","source":"/home/me/x","target":"/b","options":["rshared"]}`},
		{volume, "data:/b", `{"type":"volume","source":"data","target":"/b"}`},
		{volume, "/b", `{"type":"volume","target":"/b"}`},
		{volume, "b", ""},
		{volume, "", ""},
		{volume, ":/b", ""},
		{volume, "/a:b", ""},
		{volume, "/a:/b:ro:x", ""},
		{volume, "/a:/b:z", ""},
		{volume, "/a:/b:", ""},
		{volume, "a b:/b", ""},
		{parseTmpfs, "/run", `{"type":"tmpfs","target":"/run"}`},
		{parseTmpfs, "/run:size=64m,ro", `{"type":"tmpfs","target":"/run","readOnly":true,"options":["size=64m"]}`},
		{parseTmpfs, "run", ""},
		{parseTmpfs, "/run:", ""},
		{mount, "type=bind,source=/a,target=/b,readonly", `{"type":"bind","source":"/a","target":"/b","readOnly":true}`},
		{mount, "type=bind,src=a,dst=/b,ro=false,bind-propagation=rslave", `{"type":"bind","source":"/home/me/a","target":"/b","options":["rslave"]}`},
		{mount, "source=data,destination=/b", `{"type":"volume","source":"data","target":"/b"}`},
		{mount, "type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-mode=700", `{"type":"tmpfs","target":"/b","options":["size=1m","mode=700"]}`},
		{mount, `type=bind,"source=/a,b",target=/b`, `{"type":"bind","source":"/a,b","target":"/b"}`},
		{mount, "type=nfs,target=/b", ""},
		{mount, "type=bind,target=/b", ""},
		{mount, "type=tmpfs,source=x,target=/b", ""},
		{mount, "source=/x,target=/b", ""},
		{mount, "target", ""},
		{mount, "target=/b,shiny=1", ""},
		{mount, "target=/b,ro=maybe", ""},
		{mount, "", ""},
		{mount, `"`, ""},
	} {
		m, err := tc.parse(tc.in)
		if tc.want == "" {
			wantNext(t, err)
			continue
		}
		if got := jsonText(t, m); err != nil || got != tc.want {
			t.Errorf("%q: %s, %v, want %s", tc.in, got, err, tc.want)
		}
	}
}

func TestNetworkFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		flags networkFlags
		want  string
	}{
		"nothing":     {networkFlags{}, `["",null]`},
		"name":        {networkFlags{networks: []string{"lan"}}, `["",[{"network":"lan"}]]`},
		"none":        {networkFlags{networks: []string{"none"}}, `["none",null]`},
		"shared":      {networkFlags{networks: []string{"container:web"}}, `["container:web",null]`},
		"default net": {networkFlags{ip: "10.0.0.2"}, `["",[{"network":"nat","addresses":["10.0.0.2"]}]]`},
		"all options": {
			networkFlags{networks: []string{"lan:ip=10.0.0.7,ip6=fd00::7,mac=00:15:5d:00:00:07,alias=a,alias=b,interface=eth1,gw-priority=-3"}},
			`["",[{"network":"lan","addresses":["10.0.0.7","fd00::7"],"mac":"00-15-5D-00-00-07","aliases":["a","b"],"interface":"eth1","gatewayPriority":-3}]]`,
		},
		"single flags": {
			networkFlags{networks: []string{"lan:alias=a"}, ip6: "fd00::7", mac: "00-15-5D-00-00-07", aliases: []string{"b"}},
			`["",[{"network":"lan","addresses":["fd00::7"],"mac":"00-15-5D-00-00-07","aliases":["a","b"]}]]`,
		},
		"rates": {
			networkFlags{networks: []string{"lan:rate-out=10mbit,rate-in=1.5Gbit/s"}},
			`["",[{"network":"lan","rateOut":1250000,"rateIn":187500000}]]`,
		},
		"bad rate":            {networkFlags{networks: []string{"a:rate-out=10"}}, ""},
		"two":                 {networkFlags{networks: []string{"a", "b"}}, `["",[{"network":"a"},{"network":"b"}]]`},
		"two and an address":  {networkFlags{networks: []string{"a", "b"}, ip: "10.0.0.1"}, ""},
		"none and another":    {networkFlags{networks: []string{"none", "b"}}, ""},
		"none and an address": {networkFlags{networks: []string{"none"}, ip: "10.0.0.1"}, ""},
		"shared with nobody":  {networkFlags{networks: []string{"container:"}}, ""},
		"host":                {networkFlags{networks: []string{"host"}}, ""},
		"empty":               {networkFlags{networks: []string{""}}, ""},
		"wrong family":        {networkFlags{networks: []string{"a:ip=fd00::1"}}, ""},
		"wrong family 6":      {networkFlags{networks: []string{"a:ip6=10.0.0.1"}}, ""},
		"twice":               {networkFlags{networks: []string{"a:ip=10.0.0.1,ip=10.0.0.2"}}, ""},
		"twice by flag":       {networkFlags{networks: []string{"a:ip=10.0.0.1"}, ip: "10.0.0.2"}, ""},
		"bad mac":             {networkFlags{networks: []string{"a:mac=1"}}, ""},
		"mac twice":           {networkFlags{networks: []string{"a:mac=00-15-5D-00-00-07"}, mac: "00-15-5D-00-00-08"}, ""},
		"bad priority":        {networkFlags{networks: []string{"a:gw-priority=high"}}, ""},
		"bad key":             {networkFlags{networks: []string{"a:speed=1"}}, ""},
		"no value":            {networkFlags{networks: []string{"a:ip"}}, ""},
	} {
		mode, list, err := tc.flags.parse()
		if tc.want == "" {
			if err == nil {
				t.Errorf("%s: no error", name)
			}
			wantNext(t, err)
			continue
		}
		if got := jsonText(t, []any{mode, list}); err != nil || got != tc.want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, tc.want)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "1b": 1, "1k": 1024, "1K": 1024, "1kb": 1024, "1KiB": 1024, "512m": 512 << 20, "1.5g": 3 << 29, "2T": 2 << 40, "1p": 1 << 50,
		"": -1, "m": -1, "-1": -1, "1x": -1, "1 m": -1, "1e3": -1, "inf": -1, "nan": -1, "0x10": -1, "9999999p": -1, "1.2.3": -1, "1_0": -1,
	} {
		got, err := parseBytes(in)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

func TestParseValues(t *testing.T) {
	for in, want := range map[string]string{
		"nofile=1:2": `{"name":"nofile","soft":1,"hard":2}`, "core=0": `{"name":"core","soft":0,"hard":0}`,
		"core=unlimited": jsonText(t, api.Ulimit{Name: "core", Soft: math.MaxUint64, Hard: math.MaxUint64}),
		"nofile=2:1":     "", "nofile": "", "=1": "", "nofile=x": "", "nofile=1:x": "",
	} {
		got, err := parseUlimit(in)
		if text := jsonText(t, got); want != "" && (err != nil || text != want) {
			t.Errorf("ulimit %q: %s, %v", in, text, err)
		} else if want == "" {
			wantNext(t, err)
		}
	}
	for in, want := range map[string]string{
		"": `{}`, "no": `{"name":"no"}`, "always": `{"name":"always"}`, "on-failure:4": `{"name":"on-failure","maxRetries":4}`,
		"unless-stopped": `{"name":"unless-stopped"}`, "on-failure": `{"name":"on-failure"}`,
		"always:4": "", "on-failure:-1": "", "on-failure:x": "", "sometimes": "",
	} {
		got, err := parseRestart(in)
		if text := jsonText(t, got); want != "" && (err != nil || text != want) {
			t.Errorf("restart %q: %s, %v", in, text, err)
		} else if want == "" {
			wantNext(t, err)
		}
	}
	for in, want := range map[string]string{
		"db:10.0.0.5": `{"address":"10.0.0.5","names":["db"]}`, "db=fd00::5": `{"address":"fd00::5","names":["db"]}`, "db:fd00::5": `{"address":"fd00::5","names":["db"]}`,
		"db:[fd00::5]": `{"address":"fd00::5","names":["db"]}`, "gw:host-gateway": `{"address":"host-gateway","names":["gw"]}`,
		"db": "", ":1.2.3.4": "", "db:": "", "db:nothing": "", "a b:1.2.3.4": "",
	} {
		got, err := parseHost(in)
		if text := jsonText(t, got); want != "" && (err != nil || text != want) {
			t.Errorf("host %q: %s, %v", in, text, err)
		} else if want == "" {
			wantNext(t, err)
		}
	}
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]string{
		"10m": "2026-01-31T11:50:00Z", "2026-01-30": "2026-01-30T00:00:00Z", "2026-01-30T10:00": "2026-01-30T10:00:00Z", "0": "1970-01-01T00:00:00Z",
		"2026-01-30T10:00:00+02:00": "2026-01-30T08:00:00Z", "1769860800.5": "2026-01-31T12:00:00.5Z", "yesterday": "",
	} {
		got, err := parseTime(in, now)
		if want == "" {
			wantNext(t, err)
		} else if text := got.UTC().Format(time.RFC3339Nano); err != nil || text != want {
			t.Errorf("time %q: %s, %v, want %s", in, text, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte("# comment\n\nA=1\n  B=two words\nHOME\nUNSET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := readEnvFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseEnv(append(list, "C=", "D=a=b"), func(name string) (string, bool) { return "/root", name == "HOME" })
	if diff := cmp.Diff([]string{"A=1", "B=two words", "HOME=/root", "C=", "D=a=b"}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	_, err = parseEnv([]string{"=x"}, nil)
	wantNext(t, err)
}

func TestSecurityOptions(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for path, text := range map[string]string{good: `{"defaultAction":"SCMP_ACT_ALLOW"}`, bad: "{"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var spec api.ContainerSpec
	if err := securityOptions(&spec, []string{"seccomp=" + good, "no-new-privileges"}); err != nil {
		t.Fatal(err)
	}
	if spec.Seccomp != `{"defaultAction":"SCMP_ACT_ALLOW"}` || !spec.NoNewPrivileges {
		t.Errorf("%+v", spec)
	}
	for _, o := range []string{"seccomp=" + bad, "apparmor=x", "no-new-privileges=maybe", "seccomp="} {
		wantNext(t, securityOptions(&spec, []string{o}))
	}
	if err := securityOptions(&spec, []string{"seccomp=" + dir + "/none"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// FuzzPublish holds what every accepted -p gives: ports in range, and a scope that
// is never wider than asked for.
func FuzzPublish(f *testing.F) {
	for _, s := range []string{"8080:80", "127.0.0.1:8000-8010:80-90/udp", "[::1]::80", "0.0.0.0:1:1", "1-65535:1-65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := parsePublish(s, exposeLoopback)
		if err != nil {
			return
		}
		for _, p := range ports {
			if p.ContainerPort == 0 || int(p.ContainerPort)+int(max(p.Count, 1)) > 1<<16 || int(p.HostPort)+int(p.Count) > 1<<16 {
				t.Errorf("%q gives %+v", s, p)
			}
			if p.Expose != exposeLoopback {
				a, err := netip.ParseAddr(p.Expose)
				if err != nil || a.IsUnspecified() || !strings.Contains(s, ":") {
					t.Errorf("%q is published on %q", s, p.Expose)
				}
			}
		}
	})
}

func FuzzMounts(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "data:/b", "type=bind,source=/a,target=/b", "/run:size=1m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (api.Mount, error){
			func(s string) (api.Mount, error) { return parseVolume(s, "/") },
			func(s string) (api.Mount, error) { return parseMount(s, "/") }, parseTmpfs,
		} {
			m, err := parse(s)
			if err != nil {
				continue
			}
			if !filepath.IsAbs(m.Target) || m.Type == "bind" && !filepath.IsAbs(m.Source) || m.Type == "volume" && strings.Contains(m.Source, "/") {
				t.Errorf("%q gives %+v", s, m)
			}
		}
	})
}

func FuzzNetwork(f *testing.F) {
	for _, s := range []string{"lan", "lan:ip=10.0.0.7,ip6=fd00::7,mac=00-15-5D-00-00-01", "a:gw-priority=1,interface=eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseNetwork(s)
		if err != nil {
			return
		}
		for _, a := range n.Addresses {
			if _, err := netip.ParseAddr(a); err != nil {
				t.Errorf("%q gives the address %q", s, a)
			}
		}
		if n.Network == "" || len(n.Addresses) > 2 || n.MAC != "" && len(n.MAC) != 17 {
			t.Errorf("%q gives %+v", s, n)
		}
	})
}

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{"0": 0, "0mbit": 0, "8bit": 1, "800kbit": 100_000, "10Mbit/s": 1_250_000, "2.5gbit": 312_500_000, "1tbit": 125_000_000_000} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "10", "10m", "-1mbit", "mbit", "1e3bit", "7bit", "1.2.3mbit", "9999999999tbit", "10mbyte"} {
		if got, err := parseRate(in); err == nil {
			t.Errorf("%q is taken as %d", in, got)
		}
	}
}

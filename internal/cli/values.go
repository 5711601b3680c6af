package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// parseBytes reads a size such as 512m, 1.5g or 64KiB, in powers of 1024.
func parseBytes(s string) (int64, error) {
	bad := fmt.Errorf("%q is not a size: write it like 512m or 1.5g", s)
	t := strings.ToLower(s)
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	shift := 0
	if i := strings.IndexByte("kmgtp", last(t)); i >= 0 {
		shift = 10 * (i + 1)
		t = t[:len(t)-1]
	}
	if strings.Trim(t, "0123456789.") != "" {
		return 0, bad
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil {
		return 0, bad
	}
	if v *= float64(int64(1) << shift); v >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is larger than any machine", s)
	}
	return int64(v), nil
}

func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// bytesValue is a flag of a size; -1 is taken where it means "unlimited".
type bytesValue struct {
	n         *int64
	unlimited bool
}

func (v bytesValue) String() string {
	if v.n == nil || *v.n == 0 {
		return ""
	}
	return strconv.FormatInt(*v.n, 10)
}

func (v bytesValue) Set(s string) error {
	if s == "-1" && v.unlimited {
		*v.n = -1
		return nil
	}
	n, err := parseBytes(s)
	if err != nil {
		return err
	}
	*v.n = n
	return nil
}

func (bytesValue) Type() string { return "size" }

// parseUlimit reads NAME=SOFT[:HARD].
func parseUlimit(s string) (api.Ulimit, error) {
	name, values, ok := strings.Cut(s, "=")
	bad := api.Errorf(api.KindInvalid, "ulimit %q cannot be read", s).Hint("write it like nofile=1024:4096, or core=unlimited")
	if !ok || name == "" {
		return api.Ulimit{}, bad
	}
	softText, hardText, hasHard := strings.Cut(values, ":")
	soft, err := parseLimit(softText)
	if err != nil {
		return api.Ulimit{}, bad
	}
	hard := soft
	if hasHard {
		if hard, err = parseLimit(hardText); err != nil {
			return api.Ulimit{}, bad
		}
	}
	if soft > hard {
		return api.Ulimit{}, api.Errorf(api.KindInvalid, "ulimit %q: the soft limit is above the hard one", s).
			Hint("write %s=%d:%d", name, hard, soft)
	}
	return api.Ulimit{Name: name, Soft: soft, Hard: hard}, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" || s == "-1" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// parseRestart reads --restart NAME[:RETRIES].
func parseRestart(s string) (api.RestartPolicy, error) {
	name, retries, hasRetries := strings.Cut(s, ":")
	p := api.RestartPolicy{Name: name}
	bad := api.Errorf(api.KindInvalid, "restart policy %q is not known", s).
		Hint("use no, on-failure, on-failure:5, always or unless-stopped")
	switch name {
	case "", "no", "always", "unless-stopped":
		if hasRetries {
			return p, bad
		}
	case "on-failure":
		if !hasRetries {
			return p, nil
		}
		n, err := strconv.Atoi(retries)
		if err != nil || n < 0 {
			return p, bad
		}
		p.MaxRetries = n
	default:
		return p, bad
	}
	return p, nil
}

// parseEnv reads -e NAME=VALUE; NAME alone takes the value from our own
// environment, and is left out when it is not set there.
func parseEnv(list []string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, e := range list {
		name, _, hasValue := strings.Cut(e, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return nil, api.Errorf(api.KindInvalid, "environment variable %q has no name", e).Hint("write it like NAME=VALUE")
		}
		if hasValue {
			out = append(out, e)
		} else if v, ok := lookup(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out, nil
}

// readEnvFile reads lines of NAME=VALUE or NAME; # begins a comment line.
func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read environment file: %w", err)
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read environment file %s: %w", path, err)
	}
	return out, nil
}

// parseHost reads --add-host NAME:ADDRESS or NAME=ADDRESS.
func parseHost(s string) (api.HostEntry, error) {
	name, address, ok := strings.Cut(s, "=")
	if !ok {
		name, address, ok = strings.Cut(s, ":")
	}
	bad := api.Errorf(api.KindInvalid, "host %q cannot be read", s).Hint("write it like db:10.0.0.5 or gw:host-gateway")
	if !ok || name == "" || strings.ContainsAny(name, " \t\n#") {
		return api.HostEntry{}, bad
	}
	if address == "host-gateway" {
		return api.HostEntry{Address: address, Names: []string{name}}, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"))
	if err != nil {
		return api.HostEntry{}, bad
	}
	return api.HostEntry{Address: a.String(), Names: []string{name}}, nil
}

// parsePairs reads KEY=VALUE; a missing value is empty where that is allowed.
func parsePairs(what string, list []string, needValue bool) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if key == "" || needValue && !ok {
			return nil, api.Errorf(api.KindInvalid, "%s %q has no %s", what, s, map[bool]string{true: "name", false: "value"}[key == ""]).
				Hint("write it like KEY=VALUE")
		}
		out[key] = value
	}
	return out, nil
}

// securityOptions reads --security-opt into the spec.
func securityOptions(spec *api.ContainerSpec, list []string) error {
	for _, s := range list {
		key, value, hasValue := strings.Cut(s, "=")
		switch {
		case key == "no-new-privileges" && (!hasValue || value == "true"):
			spec.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
			spec.NoNewPrivileges = false
		case key == "seccomp" && value == "unconfined":
			spec.Seccomp = value
		case key == "seccomp" && value != "":
			profile, err := os.ReadFile(filepath.Clean(value))
			if err != nil {
				return fmt.Errorf("read seccomp profile: %w", err)
			}
			if !json.Valid(profile) {
				return api.Errorf(api.KindInvalid, "seccomp profile %s is not JSON", value).
					Hint("give a file with a profile, or seccomp=unconfined")
			}
			spec.Seccomp = string(profile)
		default:
			return api.Errorf(api.KindInvalid, "security option %q is not known", s).
				Hint("use seccomp=FILE, seccomp=unconfined or no-new-privileges")
		}
	}
	return nil
}

// parseTime reads a moment: a duration before now, seconds since 1970, a date or
// a time with or without zone.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 0 && n < 1e11 {
		return time.UnixMilli(int64(n * 1000)), nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, api.Errorf(api.KindInvalid, "%q is not a time", s).
		Hint("write it like 10m (ago), 2026-01-31T12:00:00Z, 2026-01-31 or seconds since 1970")
}

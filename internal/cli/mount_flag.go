package cli

import (
	"encoding/csv"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// parseVolume reads -v [SOURCE:]TARGET[:OPTIONS]. A source with a slash is a path
// of the host, another one the name of a volume. dir is what relative paths start
// from.
func parseVolume(s, dir string) (api.Mount, error) {
	m, err := volume(s, dir)
	if err != nil {
		return api.Mount{}, api.Errorf(api.KindInvalid, "volume %q: %w", s, err).
			Hint("write it like /srv/www:/var/www:ro, or data:/var/lib/data")
	}
	return m, nil
}

func volume(s, dir string) (api.Mount, error) {
	parts := strings.Split(s, ":")
	switch {
	case len(parts) == 1:
		return target(api.Mount{Type: "volume"}, parts[0])
	case len(parts) > 3:
		return api.Mount{}, fmt.Errorf("there are too many colons: use --mount for a path that has one")
	}
	m, err := source(parts[0], dir)
	if err != nil {
		return api.Mount{}, err
	}
	if m, err = target(m, parts[1]); err != nil || len(parts) == 2 {
		return m, err
	}
	for o := range strings.SplitSeq(parts[2], ",") {
		switch o {
		case "ro":
			m.ReadOnly = true
		case "rw":
			m.ReadOnly = false
		case "":
			return api.Mount{}, fmt.Errorf("an option is empty")
		case "z", "Z":
			return api.Mount{}, fmt.Errorf("option %s relabels for SELinux, which is not done: leave it out", o)
		default:
			m.Options = append(m.Options, o)
		}
	}
	return m, nil
}

// source tells a path from a volume's name.
func source(s, dir string) (api.Mount, error) {
	switch {
	case s == "":
		return api.Mount{}, fmt.Errorf("the source is empty")
	case filepath.IsAbs(s):
		return api.Mount{Type: "bind", Source: filepath.Clean(s)}, nil
	case strings.Contains(s, "/") || s == "." || s == "..":
		return api.Mount{Type: "bind", Source: filepath.Join(dir, s)}, nil
	case !api.IsName(s):
		return api.Mount{}, fmt.Errorf("%q is neither a path nor the name of a volume", s)
	}
	return api.Mount{Type: "volume", Source: s}, nil
}

func target(m api.Mount, s string) (api.Mount, error) {
	if !filepath.IsAbs(s) {
		return api.Mount{}, fmt.Errorf("the target %q is not an absolute path in the container", s)
	}
	m.Target = filepath.Clean(s)
	return m, nil
}

// parseTmpfs reads --tmpfs TARGET[:OPTIONS].
func parseTmpfs(s string) (api.Mount, error) {
	path, options, hasOptions := strings.Cut(s, ":")
	m, err := target(api.Mount{Type: "tmpfs"}, path)
	if err == nil && hasOptions {
		m.Options, m.ReadOnly, err = mountOptions(options)
	}
	if err != nil {
		return api.Mount{}, api.Errorf(api.KindInvalid, "tmpfs %q: %w", s, err).Hint("write it like /run:size=64m,mode=755")
	}
	return m, nil
}

func mountOptions(s string) (options []string, readOnly bool, err error) {
	for o := range strings.SplitSeq(s, ",") {
		switch o {
		case "":
			return nil, false, fmt.Errorf("an option is empty")
		case "ro":
			readOnly = true
		case "rw":
			readOnly = false
		default:
			options = append(options, o)
		}
	}
	return options, readOnly, nil
}

// parseMount reads --mount type=…,source=…,target=…[,readonly][,…].
func parseMount(s, dir string) (api.Mount, error) {
	m, err := mountFields(s, dir)
	if err != nil {
		return api.Mount{}, api.Errorf(api.KindInvalid, "mount %q: %w", s, err).
			Hint("write it like type=bind,source=/srv/www,target=/var/www,readonly")
	}
	return m, nil
}

func mountFields(s, dir string) (api.Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return api.Mount{}, fmt.Errorf("it is not a list of key=value: %w", err)
	}
	m := api.Mount{Type: "volume"}
	var sourceText, targetText string
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		if !hasValue && key != "readonly" && key != "ro" || hasValue && value == "" {
			return api.Mount{}, fmt.Errorf("%q needs a value", key)
		}
		switch key {
		case "type":
			m.Type = value
		case "source", "src":
			sourceText = value
		case "target", "destination", "dst":
			targetText = value
		case "readonly", "ro":
			if m.ReadOnly = true; hasValue {
				m.ReadOnly, err = strconv.ParseBool(value)
			}
		case "bind-propagation":
			m.Options = append(m.Options, value)
		case "tmpfs-size":
			m.Options = append(m.Options, "size="+value)
		case "tmpfs-mode":
			m.Options = append(m.Options, "mode="+value)
		case "options":
			m.Options = append(m.Options, strings.Split(value, ",")...)
		default:
			return api.Mount{}, fmt.Errorf("the key %q is not known", key)
		}
		if err != nil {
			return api.Mount{}, fmt.Errorf("%s: %q is neither true nor false", key, value)
		}
	}
	if m.Source, err = mountSource(m.Type, sourceText, dir); err != nil {
		return api.Mount{}, err
	}
	return target(m, targetText)
}

func mountSource(kind, s, dir string) (string, error) {
	switch kind {
	case "bind":
		if s == "" {
			return "", fmt.Errorf("a bind needs a source")
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(dir, s)
		}
		return filepath.Clean(s), nil
	case "volume":
		if s != "" && !api.IsName(s) {
			return "", fmt.Errorf("%q is not the name of a volume: use type=bind for a path", s)
		}
		return s, nil
	case "tmpfs":
		if s != "" {
			return "", fmt.Errorf("a tmpfs has no source")
		}
		return "", nil
	}
	return "", fmt.Errorf("type %q is not known: use bind, volume or tmpfs", kind)
}

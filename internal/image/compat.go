package image

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// An image may say which kernel it needs: the host's under process isolation, a guest's with VM isolation. The
// demands are manifest annotations or config labels; where both are given, both must hold. An image is pulled
// whatever it demands of a kernel: what its containers will have is not known then.
//
//	net.bulkhead.kernel.min-version   "5.15": this release or newer
//	net.bulkhead.kernel.max-version   "6.12": this series (any 6.12.x) or older
//	net.bulkhead.kernel.config        "CONFIG_OVERLAY_FS,CONFIG_TUN=y": built in or module, or exactly the value;
//	                                  "=n" means not set; separated by commas or spaces
//
// A key with this prefix that is not listed is a demand this version cannot check, and is refused.
const (
	KernelMinVersion = "net.bulkhead.kernel.min-version"
	KernelMaxVersion = "net.bulkhead.kernel.max-version"
	KernelConfig     = "net.bulkhead.kernel.config"

	kernelPrefix = "net.bulkhead.kernel."
)

// Facts is what an image is checked against: the kernel and processor it will run on. [HostFacts] reads
// this host's; a utility VM has its own.
type Facts struct {
	OS            string
	Architecture  string
	Variant       string            // "v3" on amd64, "v7" on arm; "" where unknown
	KernelRelease string            // as uname -r prints it
	KernelConfig  map[string]string // by name, for example CONFIG_TUN: m; nil where it cannot be read
}

// IncompatibleError says that an image cannot run on a host, and why.
type IncompatibleError struct {
	Where  string // what it does not fit; "": this host
	Field  string // "os", "architecture", "variant", "platform", or the annotation's key
	Wanted string // what the image demands
	Have   string // what the host has
	Advice string // what to do about it
}

func (e *IncompatibleError) Error() string {
	s := fmt.Sprintf("image does not fit %s: %s: wanted %s, have %s", cmp.Or(e.Where, "this host"), e.Field, e.Wanted, e.Have)
	if e.Advice != "" {
		s += " (" + e.Advice + ")"
	}
	return s
}

const adviceKernel = "run it with a kernel of its own that is so: --isolation vm"

// CheckPlatform says whether an image is for a kind of processor. It is pure; the error is an
// [IncompatibleError].
func CheckPlatform(img Image, f Facts) error {
	return checkPlatform(img.OS, img.Architecture, img.Variant, f)
}

// CheckKernel says whether an image can run on a kernel. It is pure; the error is an [IncompatibleError].
func CheckKernel(img Image, f Facts) error {
	for _, demands := range []map[string]string{img.Annotations, img.Config.Labels} {
		for _, key := range slices.Sorted(maps.Keys(demands)) {
			if !strings.HasPrefix(key, kernelPrefix) {
				continue
			}
			if err := checkDemand(key, demands[key], f); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkPlatform(os, arch, variant string, f Facts) error {
	const advice = "pull an image built for this platform"
	if os != f.OS {
		return &IncompatibleError{Field: "os", Wanted: quoteEmpty(os), Have: f.OS, Advice: advice}
	}
	if normalArch(arch) != normalArch(f.Architecture) {
		return &IncompatibleError{Field: "architecture", Wanted: quoteEmpty(arch), Have: f.Architecture, Advice: advice}
	}
	if !variantRuns(normalArch(arch), variant, f.Variant) {
		return &IncompatibleError{Field: "variant", Wanted: arch + "/" + variant, Have: quoteEmpty(f.Variant), Advice: advice}
	}
	return nil
}

func quoteEmpty(s string) string {
	if s == "" {
		return "(none given)"
	}
	return s
}

// normalArch maps the names that uname and old tools use to Go's.
func normalArch(a string) string {
	switch a {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armhf", "armel":
		return "arm"
	}
	return a
}

// variantRuns compares processor levels: a processor runs code for its own level and those below.
// An image without a variant is for the lowest; a host without one is taken as the lowest.
func variantRuns(arch, image, host string) bool {
	if image == "" || image == host {
		return true
	}
	want, ok := variantLevel(arch, image)
	have, _ := variantLevel(arch, host)
	return ok && want <= have
}

func variantLevel(arch, v string) (int, bool) {
	if v == "" {
		switch arch {
		case "amd64":
			return 1, true
		case "arm64":
			return 80, true
		case "arm":
			return 5, true
		}
		return 0, true
	}
	major, minor, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	n, err := strconv.Atoi(major)
	if err != nil || n < 0 || n > 99 {
		return 0, false
	}
	if arch != "arm64" { // arm64 alone has levels such as v8.2
		return n, minor == ""
	}
	m := 0
	if minor != "" {
		if m, err = strconv.Atoi(minor); err != nil || m < 0 || m > 9 {
			return 0, false
		}
	}
	return n*10 + m, true
}

func checkDemand(key, value string, f Facts) error {
	switch key {
	case KernelMinVersion, KernelMaxVersion:
		return checkVersion(key, value, f.KernelRelease)
	case KernelConfig:
		return checkKernelConfig(value, f)
	}
	return &IncompatibleError{
		Field: key, Wanted: strconv.Quote(value), Have: "no way to check it",
		Advice: "this version does not know that demand: update Bulkhead, or correct the key",
	}
}

func checkVersion(key, value, release string) error {
	refuse := func(have, advice string) error {
		word := "at least "
		if key == KernelMaxVersion {
			word = "at most "
		}
		return &IncompatibleError{Field: key, Wanted: word + value, Have: have, Advice: advice}
	}
	want, err := parseVersion(value)
	if err != nil {
		return refuse("kernel "+quoteEmpty(release), fmt.Sprintf("the image's demand cannot be understood: %v; correct it in the image", err))
	}
	have, err := parseVersion(release)
	if err != nil {
		return refuse("an unreadable kernel release "+strconv.Quote(release), "the demand cannot be checked on this host")
	}
	// Only the parts that are given count: a maximum of 6.12 admits 6.12.30.
	c := slices.Compare(padded(have, len(want))[:len(want)], want)
	if (key == KernelMinVersion && c < 0) || (key == KernelMaxVersion && c > 0) {
		return refuse("kernel "+release, adviceKernel)
	}
	return nil
}

func padded(v []int, n int) []int {
	for len(v) < n {
		v = append(v, 0)
	}
	return v
}

// parseVersion reads the numbers a kernel release begins with: 6.1.0-13-amd64 is 6, 1, 0.
func parseVersion(s string) ([]int, error) {
	digits := s
	if i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		digits = s[:i]
	}
	parts := strings.Split(strings.TrimSuffix(digits, "."), ".")
	if len(parts) < 1 || len(parts) > 3 {
		return nil, fmt.Errorf("%q is not a kernel version such as 5.15 or 6.1.4", s)
	}
	v := make([]int, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a kernel version such as 5.15 or 6.1.4", s)
		}
		v[i] = int(n)
	}
	return v, nil
}

func checkKernelConfig(value string, f Facts) error {
	options := strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
	if len(options) > 0 && f.KernelConfig == nil {
		return &IncompatibleError{
			Field: KernelConfig, Wanted: value, Have: "a kernel whose configuration cannot be read",
			Advice: "load the module configs (/proc/config.gz) or install the kernel's /boot/config-" + f.KernelRelease,
		}
	}
	for _, opt := range options {
		name, want, exact := strings.Cut(opt, "=")
		if !strings.HasPrefix(name, "CONFIG_") || (exact && want == "") {
			return &IncompatibleError{
				Field: KernelConfig, Wanted: strconv.Quote(opt), Have: "no such kind of option",
				Advice: "the image's demand cannot be understood: write CONFIG_NAME or CONFIG_NAME=value",
			}
		}
		have, set := f.KernelConfig[name]
		if !set {
			have = "n"
		}
		if exact && have == want || !exact && have != "n" {
			continue
		}
		return &IncompatibleError{Field: KernelConfig, Wanted: opt, Have: name + "=" + have, Advice: adviceKernel}
	}
	return nil
}

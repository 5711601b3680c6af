package hcn

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
)

func TestGUID(t *testing.T) {
	const canonical = "0A1B2C3D-4E5F-4A6B-8C7D-9E0F1A2B3C4D"
	for _, s := range []string{canonical, strings.ToLower(canonical), "{" + canonical + "}", "{" + strings.ToLower(canonical) + "}"} {
		if g, err := ParseGUID(s); err != nil || g != canonical {
			t.Errorf("ParseGUID(%q) = %q, %v", s, g, err)
		}
	}
	for _, s := range []string{
		"", "{}", canonical[:35], canonical + "0", "{" + canonical, canonical + "}", "(" + canonical + ")",
		strings.ReplaceAll(canonical, "-", ""), strings.Replace(canonical, "-", "0", 1), "../../../etc/passwd/0123456789012345678",
		strings.Replace(canonical, "0A", "0\u0130", 1), strings.Replace(canonical, "0A1B", "0G1B", 1),
	} {
		if g, err := ParseGUID(s); !errors.Is(err, ErrGUIDConversionFailure) {
			t.Errorf("ParseGUID(%q) = %q, %v: want %s", s, g, err, ErrGUIDConversionFailure.Name())
		}
	}
}

func TestNewGUID(t *testing.T) {
	seen := map[GUID]bool{}
	for range 1000 {
		g := NewGUID()
		if p, err := ParseGUID(string(g)); err != nil || p != g {
			t.Fatalf("%q is not canonical: %v", g, err)
		}
		if g[14] != '4' || !strings.ContainsRune("89AB", rune(g[19])) {
			t.Fatalf("%q is not of version 4", g)
		}
		if seen[g] {
			t.Fatalf("%q came twice", g)
		}
		seen[g] = true
	}
}

func TestMAC(t *testing.T) {
	for _, s := range []string{"00-15-5d-Aa-0b-01", "00:15:5D:AA:0B:01"} {
		m, err := ParseMAC(s)
		if err != nil || m != "00-15-5D-AA-0B-01" {
			t.Errorf("ParseMAC(%q) = %q, %v", s, m, err)
		}
		if !MAC(s).Equal("00-15-5D-AA-0B-01") || MAC(s).Equal("00-15-5D-AA-0B-02") {
			t.Errorf("%q: Equal is wrong", s)
		}
		if c := MAC(s).Colons(); c != "00:15:5d:aa:0b:01" {
			t.Errorf("Colons of %q = %q", s, c)
		}
	}
	for _, s := range []string{"", "00155DAA0B01", "00-15:5D-AA-0B-01", "00-15-5D-AA-0B", "00-15-5D-AA-0B-0G", "00.15.5D.AA.0B.01", "00-15-5D-AA-0B-011"} {
		if m, err := ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) = %q, want an error", s, m)
		}
	}
}

func TestEnumsAndMasks(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`{"Type":"l2bridge"}`, "L2Bridge None"},
		{`{"Type":3}`, "L2Bridge None"},
		{`{"Type":"10"}`, "ConstrainedICS None"},
		{`{"Type":null}`, "NAT None"},
		{`{"Flags":9}`, "NAT EnableDnsProxy|EnableNonPersistent"},
		{`{"Flags":"enablednsproxy"}`, "NAT EnableDnsProxy"},
		{`{"Flags":"EnableDnsProxy|EnablePersistent"}`, "NAT EnableDnsProxy|EnablePersistent"},
		{`{"Flags":"EnableDnsProxy, 8"}`, "NAT EnableDnsProxy|EnableNonPersistent"},
		{`{"Flags":"None"}`, "NAT None"},
		{`{"Type":"Nat2"}`, "HCN_E_INVALID_NETWORK_TYPE"},
		{`{"Type":11}`, "HCN_E_INVALID_NETWORK_TYPE"},
		{`{"Type":-1}`, "HCN_E_INVALID_NETWORK_TYPE"},
		{`{"Type":1.5}`, "HCN_E_INVALID_NETWORK_TYPE"},
		{`{"Type":{}}`, "HCN_E_INVALID_NETWORK_TYPE"},
		{`{"Flags":"EnableMagic"}`, "HCN_E_INVALID_NETWORK"},
		{`{"Flags":4294967296}`, "HCN_E_INVALID_NETWORK"},
		{`{"Flags":-1}`, "HCN_E_INVALID_NETWORK"},
		{`{"ID":"nonsense"}`, "HCN_E_GUID_CONVERSION_FAILURE"},
		{`{"Ipams":3}`, "HCN_E_INVALID_JSON"},
		{`{"Ipams":[{"Type":"Magic"}]}`, "HCN_E_INVALID_NETWORK"},
		{`{"Name":"x"} {}`, "HCN_E_INVALID_JSON"},
		{`{"Name":`, "HCN_E_INVALID_JSON"},
		{`null`, "HCN_E_INVALID_JSON"},
		{`[]`, "HCN_E_INVALID_JSON"},
		{``, "HCN_E_INVALID_JSON"},
	} {
		n, err := Decode[HostComputeNetwork]([]byte(tc.in))
		got := ""
		if err != nil {
			got = CodeOf(err).Name()
		} else {
			got = fmt.Sprint(n.Type, " ", n.Flags)
		}
		if got != tc.want {
			t.Errorf("%s: got %q (%v), want %q", tc.in, got, err, tc.want)
		}
	}
}

// TestErrorTable holds the constants to the table of the HCN schema, which testdata/errors.txt spells out.
func TestErrorTable(t *testing.T) {
	b, err := os.ReadFile("testdata/errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 0x37 {
		t.Fatalf("the table has %d rows, want %d", len(lines), 0x37)
	}
	inTable := 0
	for _, c := range ErrorCodes() {
		if uint32(c)>>16 == 0x803B {
			inTable++
		}
	}
	if inTable != len(lines) {
		t.Errorf("%d codes are of the table, want %d", inTable, len(lines))
	}
	for _, line := range lines {
		f := strings.SplitN(line, " ", 3)
		var n uint32
		if _, err := fmt.Sscanf(f[0], "0x%X", &n); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		c := ErrorCode(n)
		if c.Name() != f[1] || c.Text() != f[2] {
			t.Errorf("0x%X: got %s %q, want %s %q", n, c.Name(), c.Text(), f[1], f[2])
		}
		if want := wantStatus(f[1]); want != 0 && c.HTTPStatus() != want {
			t.Errorf("%s: HTTP status %d, want %d", f[1], c.HTTPStatus(), want)
		}
	}
}

// wantStatus is the status rule in words: by what the name says, 0 where it says nothing.
func wantStatus(name string) int {
	switch {
	case strings.Contains(name, "NOT_FOUND"):
		return 404
	case strings.Contains(name, "ALREADY_EXISTS"), strings.Contains(name, "ALREADY_ATTACHED"), strings.Contains(name, "HAS_REFERENCES"):
		return 409
	case strings.Contains(name, "_INVALID_"):
		return 400
	case strings.HasSuffix(name, "REQUEST_UNSUPPORTED"):
		return 501
	case strings.Contains(name, "MANAGER_STOPPED"):
		return 503
	}
	return 0
}

func TestErrorRecord(t *testing.T) {
	err := fmt.Errorf("create network %s: %w", "x", Errorf(ErrInvalidSubnet, "Ipams[0]: %w", fs.ErrNotExist))
	if !errors.Is(err, ErrInvalidSubnet) || !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrInvalidNetwork) {
		t.Error("the chain does not lead to code and cause")
	}
	b, merr := json.Marshal(AsError(err))
	if merr != nil {
		t.Fatal(merr)
	}
	const want = `{"Success":false,"Error":"The provided subnet configuration is invalid or missing parameters. ` +
		`create network x: Ipams[0]: file does not exist","ErrorCode":2151350322}`
	if string(b) != want {
		t.Errorf("record is\n%s\nwant\n%s", b, want)
	}
	var back Error
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Code != ErrInvalidSubnet || back.Detail != "create network x: Ipams[0]: file does not exist" || back.Text != ErrInvalidSubnet.Text() {
		t.Errorf("read back: %+v", back)
	}
	bare, _ := json.Marshal(&Error{Code: ErrElementNotFound, Text: ErrElementNotFound.Text()})
	if string(bare) != `{"Success":false,"Error":"Element not found. ","ErrorCode":2147943568}` {
		t.Errorf("bare record: %s", bare)
	}
	if e := AsError(errors.New("boom")); e.Code != ErrUnspecified || e.HTTPStatus() != 500 {
		t.Errorf("foreign error: %+v", e)
	}
	if e := AsError(fmt.Errorf("open: %w", ErrNetworkNotFound)); e.Code != ErrNetworkNotFound || e.HTTPStatus() != 404 {
		t.Errorf("bare code: %+v", e)
	}
	if AsError(nil) != nil {
		t.Error("AsError(nil) is not nil")
	}
}

func TestIsV1(t *testing.T) {
	for in, want := range map[string]bool{
		`{}`: true, `{"SchemaVersion":{"Major":1}}`: true, `{"SchemaVersion":null}`: true,
		`{"SchemaVersion":{"Major":2}}`: false, `{"schemaversion":{"major":2,"minor":9}}`: false,
	} {
		if got, err := IsV1([]byte(in)); err != nil || got != want {
			t.Errorf("IsV1(%s) = %v, %v", in, got, err)
		}
	}
	if _, err := IsV1([]byte("[")); !errors.Is(err, ErrInvalidJSON) {
		t.Errorf("IsV1 of no object: %v", err)
	}
}

func TestUnknownMembers(t *testing.T) {
	in := `{"Nam":"x","Telemetry":{},"Ipams":[{"Subnets":[{"IpAdressPrefix":"1"}]}],"Policies":[{"Type":"AutomaticDNS","Settings":{"Enabled":true}}],
		"AdditionalParams":{"a":1}}`
	got := strings.Join(UnknownMembers[HostComputeNetwork]([]byte(in)), " ")
	if want := "Ipams[0].Subnets[0].IpAdressPrefix Nam Policies[0].Settings.Enabled"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	in = `{"Policies":[{"type":"outboundnat","data":{"ExceptionList":[],"Foo":1}},{"Type":"PortMapping","Settings":{"ExternaPort":1}}]}`
	got = strings.Join(UnknownMembers[HostComputeEndpoint]([]byte(in)), " ")
	if want := "Policies[0].data.Foo Policies[1].Settings.ExternaPort"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

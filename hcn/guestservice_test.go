package hcn

import "testing"

func TestGuestNetworkService(t *testing.T) {
	const vm = `"VirtualMachineId":"c0ffee00-0000-8000-8000-000000000001"`
	for _, tc := range []struct {
		doc   string
		code  ErrorCode
		where string
	}{
		{`{` + vm + `,"Name":"g","State":"None","MirroredInterfaces":[],"GnsRpcServerInformation":{}}`, 0, ""},
		{`{}`, ErrInvalidParameter, "VirtualMachineId"},
		{`{"VirtualMachineId":"00000000-0000-0000-0000-000000000000"}`, ErrInvalidParameter, "VirtualMachineId"},
		{`{"VirtualMachineId":"own"}`, ErrGUIDConversionFailure, "VirtualMachineId"},
		{`{` + vm + `,"Name":"a/b"}`, ErrInvalidParameter, "Name"},
		{`{` + vm + `,"Owner":"a\u0007"}`, ErrInvalidParameter, "Owner"},
		{`{` + vm + `,"MirrorHostNetworking":true}`, ErrRequestUnsupported, "MirrorHostNetworking"},
		{`{` + vm + `,"MirroredInterfaces":[{"Name":"eth0"}]}`, ErrRequestUnsupported, "MirroredInterfaces"},
		{`{` + vm + `,"GnsRpcServerInformation":{"ObjectId":"x"}}`, ErrRequestUnsupported, "GnsRpcServerInformation"},
		{`{` + vm + `,"Flags":"IsFlowsteered"}`, ErrRequestUnsupported, "Flags: IsFlowsteered"},
		{`{` + vm + `,"Flags":4}`, ErrInvalidParameter, "Flags"},
		{`{` + vm + `,"Flags":"Fast"}`, ErrInvalidParameter, "Flags"},
		{`{` + vm + `,"State":"Dreaming"}`, ErrInvalidParameter, "State"},
	} {
		g, err := Decode[GuestNetworkService]([]byte(tc.doc))
		if err == nil {
			err = g.Validate()
		}
		checkErr(t, err, tc.code, tc.where)
	}
	if got := (GuestServiceIsFlowsteered | GuestServiceIsFlowsteeredSelfManaged).String(); got != "IsFlowsteered|IsFlowsteeredSelfManaged" {
		t.Error(got)
	}
}

func TestModifyGuestNetworkService(t *testing.T) {
	for _, tc := range []struct {
		doc   string
		code  ErrorCode
		where string
	}{
		{`{"ResourceType":"State","RequestType":"Update","Settings":{"State":"synchronized"}}`, 0, ""},
		{`{"ResourceType":0,"RequestType":2,"Settings":{"State":3}}`, 0, ""},
		{`{"ResourceType":"State","RequestType":"Refresh"}`, 0, ""},
		{`{"RequestType":"Refresh"}`, ErrInvalidJSON, "ResourceType"},
		{`{"ResourceType":"Soul","RequestType":"Refresh"}`, ErrInvalidJSON, "Soul"},
		{`{"ResourceType":"State","RequestType":"Update"}`, ErrInvalidJSON, "Settings"},
		{`{"ResourceType":"State","RequestType":"Update","Settings":{"State":"Paused"}}`, ErrRequestUnsupported, "Settings.State: Paused"},
		{`{"ResourceType":"State","RequestType":"Add","Settings":{"State":"Synchronized"}}`, ErrRequestUnsupported, "RequestType: Add"},
	} {
		r, err := Decode[ModifyGuestServiceSettingRequest]([]byte(tc.doc))
		if err == nil {
			err = r.Validate()
		}
		checkErr(t, err, tc.code, tc.where)
	}
}

func TestMatchGuestNetworkService(t *testing.T) {
	g := &GuestNetworkService{ID: "11111111-2222-4333-8444-555555555555", Name: "g", Owner: "o", VirtualMachineId: "C0FFEE00-0000-8000-8000-000000000001"}
	for filter, want := range map[string]bool{
		`{"Id":"{11111111-2222-4333-8444-555555555555}","Name":"g","Owner":"o"}`: true,
		`{"VirtualMachineId":"c0ffee00-0000-8000-8000-000000000001"}`:            true,
		`{"VirtualMachineId":"c0ffee00-0000-8000-8000-000000000002"}`:            false,
		`{"Type":"Guest"}`: false,
	} {
		f, err := ParseFilter(filter)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.MatchGuestNetworkService(g); got != want {
			t.Errorf("%s: %v", filter, got)
		}
	}
}

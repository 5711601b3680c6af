package hcn

import (
	"reflect"
	"testing"
)

// TestCloneSharesNothing fills every member of every document by reflection, so that a member added later is looked at too.
func TestCloneSharesNothing(t *testing.T) {
	checkClone(t, new(HostComputeNetwork), (*HostComputeNetwork).Clone)
	checkClone(t, new(HostComputeEndpoint), (*HostComputeEndpoint).Clone)
	checkClone(t, new(HostComputeNamespace), (*HostComputeNamespace).Clone)
	checkClone(t, new(HostComputeLoadBalancer), (*HostComputeLoadBalancer).Clone)
	checkClone(t, new(HostComputeRoute), (*HostComputeRoute).Clone)
	checkClone(t, new(GuestNetworkService), (*GuestNetworkService).Clone)
}

func checkClone[T any](t *testing.T, v *T, clone func(*T) *T) {
	t.Helper()
	fill(reflect.ValueOf(v).Elem())
	c := clone(v)
	if !reflect.DeepEqual(v, c) {
		t.Errorf("%T: the clone differs", v)
	}
	if path := shared(reflect.ValueOf(v).Elem(), reflect.ValueOf(c).Elem(), ""); path != "" {
		t.Errorf("%T: %s is shared with the clone", v, path)
	}
	if clone(nil) != nil {
		t.Errorf("%T: the clone of nil is not nil", v)
	}
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	default:
		panic("fill does not know " + v.Kind().String())
	}
}

// shared finds memory that both values point to.
func shared(a, b reflect.Value, path string) string {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if p := shared(a.Field(i), b.Field(i), path+"."+a.Type().Field(i).Name); p != "" {
				return p
			}
		}
	case reflect.Slice:
		if a.Pointer() == b.Pointer() {
			return path
		}
		for i := range a.Len() {
			if p := shared(a.Index(i), b.Index(i), indexed(path, i)); p != "" {
				return p
			}
		}
	case reflect.Pointer:
		if a.Pointer() == b.Pointer() {
			return path
		}
		return shared(a.Elem(), b.Elem(), path)
	default: // holds no memory of its own
	}
	return ""
}

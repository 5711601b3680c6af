package kube

import (
	"os"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// TestManifest reads the manifest as a strict API server does, and holds its roles against what is watched.
func TestManifest(t *testing.T) {
	text, err := os.ReadFile("../../packaging/kubernetes/kube-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(text), "\n---\n")
	var account core.ServiceAccount
	var role rbac.ClusterRole
	var binding rbac.ClusterRoleBinding
	var set apps.DaemonSet
	for i, what := range []any{&account, &role, &binding, &set} {
		if err := yaml.UnmarshalStrict([]byte(docs[i]), what); err != nil {
			t.Fatal(err)
		}
	}
	pod := set.Spec.Template
	if pod.Spec.ServiceAccountName != account.Name || binding.Subjects[0].Name != account.Name || binding.Subjects[0].Namespace != set.Namespace || binding.RoleRef.Name != role.Name {
		t.Error("the account, its role and the pod do not belong together")
	}
	for k, v := range set.Spec.Selector.MatchLabels {
		if pod.Labels[k] != v {
			t.Error("the DaemonSet does not select its own pods")
		}
	}
	for _, what := range []struct{ group, resource string }{{"", "services"}, {"", "nodes"}, {"discovery.k8s.io", "endpointslices"}} {
		if !slices.ContainsFunc(role.Rules, func(r rbac.PolicyRule) bool {
			return slices.Contains(r.APIGroups, what.group) && slices.Contains(r.Resources, what.resource) && slices.Equal(r.Verbs, []string{"list", "watch"})
		}) {
			t.Errorf("no right to list and watch %s", what.resource)
		}
	}
}

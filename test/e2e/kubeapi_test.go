package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// kubeAPIName is what the test binary is called by a story that needs an API server of Kubernetes, for what the controller of Services
// asks of one: lists and watches, by label and name. Objects come by server-side apply, so that the same commands drive a real one.
//
//	kubeapi serve ADDRESS [CERT KEY]    with a token in the environment's TOKEN, if it is to be asked for
//	kubeapi apply SERVER [FILE]         standard input without one
//	kubeapi delete SERVER PATH
const kubeAPIName = "kubeapi"

func kubeAPIMain(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch {
	case len(args) >= 2 && args[0] == "serve":
		return serveKubeAPI(args[1], args[2:])
	case (len(args) == 2 || len(args) == 3) && args[0] == "apply":
		return kubeApply(ctx, args[1], args[2:])
	case len(args) == 3 && args[0] == "delete":
		return kubeCall(ctx, http.MethodDelete, args[1]+args[2], nil)
	}
	return fmt.Errorf("usage: %s serve|apply|delete …", kubeAPIName)
}

// collections are where objects of a kind are.
func collection(o *unstructured.Unstructured) (string, error) {
	in := ""
	if ns := o.GetNamespace(); ns != "" {
		in = "namespaces/" + ns + "/"
	}
	switch o.GetKind() {
	case "Service":
		return "/api/v1/" + in + "services", nil
	case "Node":
		return "/api/v1/nodes", nil
	case "Namespace":
		return "/api/v1/namespaces", nil
	case "ServiceAccount":
		return "/api/v1/" + in + "serviceaccounts", nil
	case "EndpointSlice":
		return "/apis/discovery.k8s.io/v1/" + in + "endpointslices", nil
	case "ClusterRole", "ClusterRoleBinding":
		return "/apis/rbac.authorization.k8s.io/v1/" + strings.ToLower(o.GetKind()) + "s", nil
	}
	return "", fmt.Errorf("where is a %s?", o.GetKind())
}

func kubeApply(ctx context.Context, server string, file []string) error {
	text, err := io.ReadAll(os.Stdin)
	if len(file) > 0 {
		text, err = os.ReadFile(file[0])
	}
	if err != nil {
		return err
	}
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &o.Object); err != nil {
			return err
		}
		path, err := collection(o)
		if err != nil {
			return err
		}
		at := server + path + "/" + o.GetName()
		if err := kubeCall(ctx, http.MethodPatch, at+"?fieldManager=story&force=true", doc); err != nil {
			return err
		}
		if o.Object["status"] == nil {
			continue
		}
		if err := kubeCall(ctx, http.MethodPatch, at+"/status?fieldManager=story&force=true", doc); err != nil {
			return err
		}
	}
	return nil
}

func kubeCall(ctx context.Context, method, at string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/apply-patch+yaml")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusBadRequest {
		text, _ := io.ReadAll(res.Body)
		return fmt.Errorf("%s %s: %s: %s", method, at, res.Status, text)
	}
	return nil
}

// kubeAPI keeps objects by the path of their collection without its namespace.
type kubeAPI struct {
	token string

	mu      sync.Mutex
	version int
	objects map[string]*unstructured.Unstructured // by path
	events  []kubeEvent
	more    chan struct{} // closed when there are more events
}

type kubeEvent struct {
	kind string                     // the plural
	Type string                     `json:"type"`
	What *unstructured.Unstructured `json:"object"`
}

func serveKubeAPI(at string, files []string) error {
	a := &kubeAPI{token: os.Getenv("TOKEN"), objects: map[string]*unstructured.Unstructured{}, more: make(chan struct{})}
	s := &http.Server{Addr: at, Handler: a, ReadHeaderTimeout: 5 * time.Second}
	if len(files) == 2 {
		return s.ListenAndServeTLS(files[0], files[1])
	}
	return s.ListenAndServe()
}

func (a *kubeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/status")
	parts := strings.Split(path, "/")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case path == "/readyz":
		_, _ = io.WriteString(w, "I am the API server\n")
	case a.token != "" && r.Header.Get("Authorization") != "Bearer "+a.token:
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodPatch:
		o := &unstructured.Unstructured{}
		text, err := io.ReadAll(r.Body)
		if err = errors.Join(err, yaml.Unmarshal(text, &o.Object)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.put(path, parts[len(parts)-2], o)
	case r.Method == http.MethodDelete:
		a.put(path, parts[len(parts)-2], nil)
	case r.URL.Query().Get("watch") != "":
		a.watch(w, r, parts[len(parts)-1])
	default:
		a.list(w, r, parts[len(parts)-1])
	}
}

func (a *kubeAPI) put(path, kind string, o *unstructured.Unstructured) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.objects[path]
	ev := kubeEvent{kind: kind, Type: "ADDED", What: o}
	switch {
	case o == nil && old == nil:
		return
	case o == nil:
		ev.Type, ev.What = "DELETED", old.DeepCopy()
		delete(a.objects, path)
	case old != nil:
		ev.Type = "MODIFIED"
	}
	a.version++
	ev.What.SetResourceVersion(strconv.Itoa(a.version))
	if o != nil {
		o.SetCreationTimestamp(meta.Now())
		if old != nil {
			o.SetCreationTimestamp(old.GetCreationTimestamp())
		}
		a.objects[path] = o
	}
	a.events = append(a.events, ev)
	close(a.more)
	a.more = make(chan struct{})
}

// picks reads the selectors of a question.
func picks(v url.Values) (func(*unstructured.Unstructured) bool, error) {
	byLabel, err1 := labels.Parse(v.Get("labelSelector"))
	byField, err2 := fields.ParseSelector(v.Get("fieldSelector"))
	return func(o *unstructured.Unstructured) bool {
		return byLabel.Matches(labels.Set(o.GetLabels())) && byField.Matches(fields.Set{"metadata.name": o.GetName()})
	}, errors.Join(err1, err2)
}

// now are the objects of a kind, and the number of the event after which that is so.
func (a *kubeAPI) now(kind string, pick func(*unstructured.Unstructured) bool) (list []*unstructured.Unstructured, version int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for path, o := range a.objects {
		if strings.Contains(path, "/"+kind+"/") && pick(o) {
			list = append(list, o)
		}
	}
	return list, a.version
}

var kubeLists = map[string][2]string{ //nolint:gochecknoglobals // read only
	"services": {"v1", "ServiceList"}, "nodes": {"v1", "NodeList"}, "endpointslices": {"discovery.k8s.io/v1", "EndpointSliceList"},
}

func (a *kubeAPI) list(w http.ResponseWriter, r *http.Request, kind string) {
	pick, err := picks(r.URL.Query())
	if err != nil || kubeLists[kind][0] == "" {
		http.Error(w, fmt.Sprintf("list %s: %v", kind, err), http.StatusBadRequest)
		return
	}
	list, version := a.now(kind, pick)
	if list == nil {
		list = []*unstructured.Unstructured{}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"apiVersion": kubeLists[kind][0], "kind": kubeLists[kind][1], "metadata": map[string]string{"resourceVersion": strconv.Itoa(version)}, "items": list,
	})
}

// watch tells of events after a version; of all that is, first, when that is asked for.
func (a *kubeAPI) watch(w http.ResponseWriter, r *http.Request, kind string) {
	pick, err := picks(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := json.NewEncoder(w)
	after, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		var list []*unstructured.Unstructured
		list, after = a.now(kind, pick)
		for _, o := range list {
			_ = out.Encode(kubeEvent{Type: "ADDED", What: o})
		}
		mark := &unstructured.Unstructured{Object: map[string]any{"apiVersion": kubeLists[kind][0], "kind": strings.TrimSuffix(kubeLists[kind][1], "List")}}
		mark.SetResourceVersion(strconv.Itoa(after))
		mark.SetAnnotations(map[string]string{meta.InitialEventsAnnotationKey: "true"})
		_ = out.Encode(kubeEvent{Type: "BOOKMARK", What: mark})
	}
	for {
		a.mu.Lock()
		events, more := slices.Clone(a.events[min(after, len(a.events)):]), a.more
		after = len(a.events)
		a.mu.Unlock()
		for _, ev := range events {
			if ev.kind == kind && pick(ev.What) {
				_ = out.Encode(ev)
			}
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-more:
		}
	}
}

package api

import "time"

// Image is an image in the local store.
type Image struct {
	ID           string            `json:"id"`      // digest of the manifest
	Names        []string          `json:"names"`   // references by tag
	Digests      []string          `json:"digests"` // references by digest
	Created      time.Time         `json:"created,omitzero"`
	Size         int64             `json:"size"` // compressed layers
	OS           string            `json:"os"`
	Architecture string            `json:"architecture"`
	Variant      string            `json:"variant,omitempty"`
	Layers       []string          `json:"layers"` // diff IDs, lowest first
	Config       ImageConfig       `json:"config"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Containers   int               `json:"containers"` // that use it
}

// ImageConfig is the part of an OCI image configuration that says how to run it.
type ImageConfig struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"`
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // "80/tcp"
	Volumes      []string          `json:"volumes,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
}

// PullRequest asks for an image of a registry.
type PullRequest struct {
	Reference string        `json:"reference"`
	Policy    string        `json:"policy,omitempty"` // "always" (the default), "missing", "never"
	Auth      *RegistryAuth `json:"auth,omitempty"`
	// PlainHTTP allows an unencrypted registry; always allowed on loopback.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
}

// RegistryAuth are credentials of one registry.
type RegistryAuth struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// Token is sent to the registry as it is, IdentityToken is exchanged for one at
	// the registry's token server.
	Token         string `json:"token,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
	// Fallback has them used only for a registry that the daemon itself has no
	// credentials for.
	Fallback bool `json:"fallback,omitempty"`
}

// LoginRequest has the daemon check credentials with a registry and keep them.
type LoginRequest struct {
	Registry  string       `json:"registry"` // "registry.example:5000"
	Auth      RegistryAuth `json:"auth"`
	PlainHTTP bool         `json:"plainHTTP,omitempty"`
}

// ImageProgress is one message of the stream that a pull or push answers with
// (newline-delimited JSON). The last one has Done or Error set.
type ImageProgress struct {
	Layer   string `json:"layer,omitempty"` // digest; "" = the image as a whole
	Phase   string `json:"phase,omitempty"` // "resolving", "downloading", "unpacking", "exists", "pushing", "done"
	Current int64  `json:"current,omitempty"`
	Total   int64  `json:"total,omitempty"`
	Done    *Image `json:"done,omitempty"`
	Error   string `json:"error,omitempty"`
}

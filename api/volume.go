package api

import "time"

// Volume is a named volume: a directory that outlives the containers it is
// mounted in.
type Volume struct {
	Name    string    `json:"name"`
	Path    string    `json:"path"` // of its content, on the host
	Created time.Time `json:"created"`
	// Containers are the names of those that mount it, running or not.
	Containers []string `json:"containers"`
}

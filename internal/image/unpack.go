package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/umoci/oci/layer"
)

// budget is what is left of an image's limits while its layers are unpacked, base first.
type budget struct {
	limits Limits
	bytes  int64
	files  int64
}

// layerInfo is kept beside an unpacked layer. Its directory has a shortened name, so that the paths of
// many layers fit into the one page that mount options may have; the full name is here.
type layerInfo struct {
	ChainID string `json:"chainID"`
	DiffID  string `json:"diffID"`
	Bytes   int64  `json:"bytes"`
	Files   int64  `json:"files"`
}

// layerName is a layer's directory name.
func layerName(chainID string) string {
	return strings.TrimPrefix(chainID, "sha256:")[:min(24, len(strings.TrimPrefix(chainID, "sha256:")))]
}

func (s *Store) diffDir(chainID string) string {
	return filepath.Join(s.LayersDir(), layerName(chainID), "diff")
}

// Layers makes sure that an image is unpacked and returns its overlayfs lower directories, topmost first:
// joined with colons they are what "lowerdir=" wants. Their length may exceed what mount(2) takes; from
// [Store.LayersDir] as working directory, the last two elements of each path are enough.
func (s *Store) Layers(ctx context.Context, nameOrID string) ([]string, error) {
	s.mu.Lock()
	_, img, _, err := s.find(nameOrID)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("unpack image: %w", err)
	}
	unpin := s.pin(pins(img)...)
	defer unpin()
	b := &budget{limits: s.opts.Limits}
	for i := range img.Layers {
		// The image is in the table already, so this layer must be on disk before it has its name.
		if err := s.unpack(ctx, img, i, b, true, func(Phase, int64) {}); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", nameOrID, err)
		}
	}
	return s.lowerDirs(img.Layers), nil
}

// lowerDirs lists unpacked layers topmost first.
func (s *Store) lowerDirs(layers []Layer) []string {
	dirs := make([]string, 0, len(layers))
	for _, l := range slices.Backward(layers) {
		dirs = append(dirs, s.diffDir(l.ChainID))
	}
	return dirs
}

// pins lists the blobs and layers of an image.
func pins(img Image) []string {
	keys := []string{img.ID, img.ConfigDigest}
	for _, l := range img.Layers {
		keys = append(keys, l.Digest, l.ChainID)
	}
	return keys
}

// unpack makes sure that layer i of an image is unpacked; those below it are. With durable, it is on
// disk before it takes its name.
func (s *Store) unpack(ctx context.Context, img Image, i int, b *budget, durable bool, report func(Phase, int64)) error {
	l := img.Layers[i]
	unlock, err := s.working.lock(ctx, "unpack "+l.ChainID)
	if err != nil {
		return err
	}
	defer unlock()
	info, err := s.readLayerInfo(l)
	if errors.Is(err, os.ErrNotExist) {
		info, err = s.unpackNew(ctx, l, s.lowerDirs(img.Layers[:i]), b, durable, report)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	b.bytes += info.Bytes
	b.files += info.Files
	return nil
}

func (s *Store) readLayerInfo(l Layer) (layerInfo, error) {
	var info layerInfo
	raw, err := os.ReadFile(filepath.Join(s.LayersDir(), layerName(l.ChainID), "layer.json"))
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		return info, fmt.Errorf("read unpacked layer: %w", err)
	}
	if info.ChainID != l.ChainID {
		return info, refused("its chain ID %s collides with that of another layer, %s", l.ChainID, info.ChainID)
	}
	return info, nil
}

func (s *Store) unpackNew(ctx context.Context, l Layer, lowers []string, b *budget, durable bool, report func(Phase, int64)) (layerInfo, error) {
	info := layerInfo{ChainID: l.ChainID, DiffID: l.DiffID}
	tmp, err := os.MkdirTemp(s.tmpDir(), "layer-")
	if err != nil {
		return info, fmt.Errorf("unpack: %w", err)
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "diff")
	if err := os.Mkdir(root, 0o755); err != nil {
		return info, fmt.Errorf("unpack: %w", err)
	}
	if err := os.Chmod(root, 0o755); err != nil { // whatever the umask
		return info, fmt.Errorf("unpack: %w", err)
	}
	blob, err := os.Open(s.blobFile(l.Digest))
	if err != nil {
		return info, fmt.Errorf("unpack: %w", err)
	}
	defer blob.Close()
	x := extraction{
		root: root, log: s.log.With("layer", l.Digest),
		tree: newTree(root, lowers), budget: b, info: &info,
		umoci: layer.NewTarExtractor(&layer.UnpackOptions{OnDiskFormat: layer.OverlayfsRootfs{}}),
	}
	if err := x.run(ctx, &meter{r: blob, report: report}, l.DiffID); err != nil {
		return info, err
	}
	raw, err := json.Marshal(info)
	if err != nil {
		return info, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), raw, 0o600); err != nil {
		return info, fmt.Errorf("unpack: %w", err)
	}
	if durable {
		if err := s.syncfs(tmp); err != nil {
			return info, fmt.Errorf("unpack: %w", err)
		}
	}
	return info, s.installLayer(tmp, layerName(l.ChainID))
}

// installLayer gives an unpacked layer its name. What has the name without a layer.json was not made by us.
func (s *Store) installLayer(tmp, name string) error {
	to := filepath.Join(s.LayersDir(), name)
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if err := install(tmp, to); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// extraction is one layer being unpacked. umoci writes the files and turns OCI whiteouts into those of
// overlayfs; everything that decides whether an entry may be written at all is here.
type extraction struct {
	root   string
	log    *slog.Logger
	tree   *tree
	budget *budget
	info   *layerInfo
	umoci  *layer.TarExtractor
}

// run unpacks a blob and verifies that what was unpacked is what the config promised.
func (x *extraction) run(ctx context.Context, blob io.Reader, diffID string) error {
	plain, done, err := decompress(blob)
	if err != nil {
		return err
	}
	defer done()
	sum := sha256.New()
	// Headers and padding count here, contents in admit: an archive of a million empty files is also large.
	bounded := &boundedReader{ctx: ctx, r: plain, left: x.budget.limits.LayerBytes + 1024*x.budget.limits.Files}
	in := io.TeeReader(bounded, sum)
	if err := x.entries(tar.NewReader(in)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // padding after the end of the archive
		return readError(err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return refused("wrong content: the archive's digest is %s, the config says %s", got, diffID)
	}
	return nil
}

func (x *extraction) entries(tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return readError(err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader { // comments of git archive
			continue
		}
		name := hdr.Name
		write, err := x.admit(hdr)
		if err == nil && write {
			err = x.write(hdr, tr)
		}
		if err != nil {
			return fmt.Errorf("entry %q: %w", name, err)
		}
	}
}

func (x *extraction) write(hdr *tar.Header, r io.Reader) error {
	if err := x.tree.place(hdr); err != nil {
		return err
	}
	if err := x.umoci.UnpackEntry(x.root, hdr, r); err != nil {
		if hdr.Typeflag == tar.TypeLink && errors.Is(err, os.ErrNotExist) {
			return refused("hard link to %q, which is not in this layer", hdr.Linkname)
		}
		return readError(err)
	}
	x.tree.wrote(hdr)
	return nil
}

// admit checks an entry against the policy for hostile archives; false means to leave it out.
func (x *extraction) admit(hdr *tar.Header) (bool, error) {
	if err := checkEntryName(hdr); err != nil {
		return false, err
	}
	x.info.Files++
	if x.budget.files+x.info.Files > x.budget.limits.Files {
		return false, refused("image has more than %d files", x.budget.limits.Files)
	}
	if hdr.Size < 0 {
		return false, refused("negative size")
	}
	// Sparse files count in full: they take their blocks only once somebody writes, but umoci writes.
	x.info.Bytes += hdr.Size
	if hdr.Size > x.budget.limits.LayerBytes || x.info.Bytes > x.budget.limits.LayerBytes {
		return false, refused("layer unpacks to more than %d bytes", x.budget.limits.LayerBytes)
	}
	if x.budget.bytes+x.info.Bytes > x.budget.limits.ImageBytes {
		return false, refused("image unpacks to more than %d bytes", x.budget.limits.ImageBytes)
	}
	dropForeignAttributes(hdr)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
		return true, nil
	case tar.TypeChar, tar.TypeBlock:
		return x.admitDevice(hdr)
	}
	return false, refused("unknown kind of entry %q", hdr.Typeflag)
}

// admitDevice lets no device node through. A container gets its devices from the runtime, and a node in
// an unpacked layer would open the host's disk to whoever can reach the path. Old base images carry a
// few under /dev, where they are hidden at run time: those are left out. The one exception is 0:0,
// which opens nothing: it is how overlayfs itself writes a whiteout.
func (x *extraction) admitDevice(hdr *tar.Header) (bool, error) {
	if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
		return true, nil
	}
	if strings.HasPrefix(path.Clean(hdr.Name)+"/", "dev/") {
		x.log.Warn("device node is left out", "entry", hdr.Name)
		return false, nil
	}
	return false, refused("device node %d:%d outside of /dev", hdr.Devmajor, hdr.Devminor)
}

// dropForeignAttributes removes extended attributes that mean something only on the host an archive was
// made on: labels, integrity signatures. umoci ignores the commonest itself, but talks about it.
func dropForeignAttributes(hdr *tar.Header) {
	for attr := range hdr.Xattrs { //nolint:staticcheck // deprecated, but it is what umoci reads
		keep := strings.HasPrefix(attr, "user.") && attr != "user.rootlesscontainers" ||
			strings.HasPrefix(attr, "trusted.") || attr == "security.capability" || strings.HasPrefix(attr, "system.posix_acl_")
		if !keep {
			delete(hdr.Xattrs, attr) //nolint:staticcheck // as above
		}
	}
}

// maxEntryName is what Linux file systems take for one name in a directory.
const maxEntryName = 255

// checkEntryName refuses names and links that leave the root. umoci would confine them, but an archive
// that tries is not one to trust.
func checkEntryName(hdr *tar.Header) error {
	if hdr.Name == "" || strings.ContainsRune(hdr.Name, 0) {
		return refused("an entry needs a name")
	}
	if path.IsAbs(hdr.Name) && path.Clean(hdr.Name) != "/" {
		return refused("absolute path")
	}
	if climbs(hdr.Name) {
		return refused("path leaves the root")
	}
	// umoci removes what a whiteout names: these would name the directory it is in, or the one above.
	switch path.Base(hdr.Name) {
	case ".wh.", ".wh..", ".wh...":
		return refused("whiteout of no file")
	}
	for part := range strings.SplitSeq(hdr.Name, "/") {
		if len(part) > maxEntryName {
			return refused("a name of %d bytes, %d is the limit", len(part), maxEntryName)
		}
	}
	switch hdr.Typeflag {
	case tar.TypeLink:
		if path.IsAbs(hdr.Linkname) || climbs(hdr.Linkname) {
			return refused("hard link to %q, out of the root", hdr.Linkname)
		}
	case tar.TypeSymlink:
		// Absolute ones are common and mean the container's root.
		if !path.IsAbs(hdr.Linkname) && climbs(path.Dir(path.Clean(hdr.Name))+"/"+hdr.Linkname) {
			return refused("symbolic link to %q, out of the root", hdr.Linkname)
		}
	}
	return nil
}

// climbs says whether a relative path leads above where it starts.
func climbs(p string) bool {
	p = path.Clean(p)
	return p == ".." || strings.HasPrefix(p, "../")
}

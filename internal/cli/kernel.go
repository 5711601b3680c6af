package cli

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// kernelLabel says of an image which guest kernel it is.
const kernelLabel = "net.bulkhead.guest-kernel"

// completeKernels gives the images that are guest kernels.
func (a *app) completeKernels(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return a.live(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Images(ctx)
		var names []string
		for _, i := range list {
			if i.Config.Labels[kernelLabel] != "" || i.Annotations[kernelLabel] != "" {
				names = append(names, i.Names...)
			}
		}
		return names, err
	})(cmd, args, begun)
}

func newImportKernelCmd(a *app) *cobra.Command {
	var root, version string
	var labels []string
	cmd := &cobra.Command{
		Use:   "import-kernel [flags] NAME",
		Short: "Make an image of a kernel for VMs",
		Long: `Makes an image of a kernel that is installed here, or unpacked in a directory: boot/vmlinuz-VERSION,
boot/config-VERSION and lib/modules/VERSION. It is pushed and pulled as any image. A container has it
with --guest-kernel, or when its image demands a kernel that the installed one is not.`,
		Example: `  bulkhead image import-kernel registry.example/kernels/debian:6.1
  bulkhead image import-kernel --root /srv/kernel --version 6.12.43-cloud-amd64 kernel:6.12`,
		Args: needArgs(1, 1, "name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			config := api.ImageConfig{}
			var err error
			if config.Labels, err = parsePairs("label", labels, false); err != nil {
				return err
			}
			k, err := findKernel(root, version)
			if err != nil {
				return err
			}
			if config.Labels == nil {
				config.Labels = map[string]string{}
			}
			config.Labels[kernelLabel] = k.version
			r, w := io.Pipe()
			go func() { _ = w.CloseWithError(k.pack(w)) }()
			defer r.Close()
			return a.importImage(cmd.Context(), r, k.version, 0, args[0], config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&root, "root", "/", "directory with boot and lib/modules")
	flags.StringVar(&version, "version", "", "version of the kernel; needed where there are several")
	flags.StringArrayVarP(&labels, "label", "l", nil, "label KEY[=VALUE]")
	return cmd
}

// kernelFiles are a kernel's, below a directory.
type kernelFiles struct {
	root    string
	version string
	lib     string // lib/modules or usr/lib/modules
}

func findKernel(root, version string) (kernelFiles, error) {
	k := kernelFiles{root: root, version: version}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return k, fmt.Errorf("find the kernel: %w", err)
	}
	var versions []string
	for _, i := range images {
		versions = append(versions, strings.TrimPrefix(filepath.Base(i), "vmlinuz-"))
	}
	switch {
	case version == "" && len(versions) == 1:
		k.version = versions[0]
	case version == "" && len(versions) > 1:
		return k, api.Errorf(api.KindInvalid, "there are several kernels in %s", filepath.Join(root, "boot")).Hint("choose with --version: %s", strings.Join(versions, ", "))
	case version != path.Base(version), k.version == "":
		return k, api.Errorf(api.KindInvalid, "there is no kernel %s", filepath.Join(root, "boot", "vmlinuz-"+cmp.Or(version, "*"))).Hint("apt-get install linux-image-cloud-amd64, or name another place with --root")
	}
	if _, err := os.Stat(filepath.Join(root, "boot", "vmlinuz-"+k.version)); err != nil {
		return k, api.Errorf(api.KindInvalid, "find the kernel: %w", err).Hint("those that are there: %s", strings.Join(versions, ", "))
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		if st, err := os.Stat(filepath.Join(root, lib, "modules", k.version, "kernel")); err == nil && st.IsDir() {
			k.lib = path.Join(lib, "modules", k.version)
			return k, nil
		}
	}
	return k, api.Errorf(api.KindInvalid, "kernel %s has no modules in %s", k.version, filepath.Join(root, "lib", "modules", k.version)).Hint("install or unpack the whole package")
}

// pack writes the archive. Of the modules' directory it has the files: links in it lead to sources that are elsewhere.
func (k kernelFiles) pack(w io.Writer) error {
	out := tar.NewWriter(w)
	if err := k.add(out, path.Join("boot", "vmlinuz-"+k.version), path.Join("boot", "vmlinuz-"+k.version)); err != nil {
		return err
	}
	config := path.Join("boot", "config-"+k.version)
	if err := k.add(out, config, config); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	top := filepath.Join(k.root, k.lib)
	err := filepath.WalkDir(top, func(file string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		return k.add(out, path.Join(k.lib, filepath.ToSlash(rel)), path.Join("lib", "modules", k.version, filepath.ToSlash(rel)))
	})
	if err != nil {
		return fmt.Errorf("pack kernel %s: %w", k.version, err)
	}
	return out.Close()
}

// add writes a file under a name.
func (k kernelFiles) add(out *tar.Writer, file, name string) error {
	f, err := os.Open(filepath.Join(k.root, filepath.FromSlash(file)))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	head := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: st.Size(), ModTime: st.ModTime()}
	if err := out.WriteHeader(head); err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return err
}

package vm

import (
	"fmt"
	"os/exec"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// The descriptors that QEMU is started with.
const (
	fdAgent = 3 + iota
	fdQMP
	fdConsole
	fdMemory
	fdShare // and the disk, or the disk alone
)

// A VM that is restored has no share at first, and reads what was saved of its devices in that place.
const fdState = fdShare

// slots are how many NICs can be plugged in; a share has a slot of its own, or the first of disks has it.
const (
	slots     = api.MostGuestNICs
	shareSlot = slots
)

// Hardware is a VM's.
type Hardware struct {
	Accel  string `json:"accel"`
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	Share  bool   `json:"share"` // a virtiofs share, whose socket is fdShare
	// Restore has the VM wait for what was saved (fdState). All else has to be as it was then, with no share, which cannot be saved.
	Restore bool `json:"-"`
	// Disk has it get a disk, whose file comes behind the share's socket.
	Disk bool `json:"disk,omitempty"`
	// Disks has it be ready for disks with the files of containers.
	Disks bool `json:"disks,omitempty"`
}

// diskSerial names the disk to the guest.
const diskSerial = "bulkhead"

// shareTag names the share to the guest.
const shareTag = "share"

// qemuPackage has QEMU for this machine's kind.
const qemuPackage = "qemu-system-x86"

// FindQEMU finds the program.
func FindQEMU() (string, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", &MissingError{What: "qemu-system-x86_64", Package: qemuPackage}
	}
	return path, nil
}

// commandLine of the guest's kernel. Under emulation there is nothing to mitigate, and one processor.
func (h Hardware) commandLine() string {
	s := "console=ttyS0 panic=-1 reboot=t,k quiet loglevel=0 rdinit=/init random.trust_cpu=on cryptomgr.notests i8042.noaux=1 i8042.nokbd=1"
	if h.Accel == AccelTCG {
		s += " mitigations=off noreplace-smp"
	}
	return s
}

// Args are QEMU's arguments. Nothing in them is the container's: its NICs are plugged in when the VM runs.
func (h Hardware) Args() []string {
	accel, cpu := "tcg,thread=multi,tb-size=64", "max"
	if h.Accel == AccelKVM {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"-M", "q35,smm=off,sata=off,usb=off,smbus=off,memory-backend=mem",
		"-accel", accel, "-cpu", cpu, "-smp", fmt.Sprint(h.CPUs), "-m", fmt.Sprintf("%dM", h.Memory>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=mem,mem-path=/proc/self/fd/%d,size=%dM,share=on", fdMemory, h.Memory>>20),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-kernel", h.Kernel, "-initrd", h.Initrd, "-append", h.commandLine(),
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fdAgent),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=" + agent.PortName,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-serial", "chardev:console",
	}
	if h.Share {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=share,fd=%d", fdShare), "-device", "vhost-user-fs-pci,chardev=share,tag="+shareTag)
	}
	if h.Disk {
		fd := fdShare
		if h.Share {
			fd++
		}
		// What the guest discards, the file gives back.
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=1", fd),
			"-blockdev", "driver=file,node-name=file,filename=/dev/fdset/1,discard=unmap",
			"-blockdev", "driver=raw,node-name=disk,file=file,discard=unmap",
			"-device", "virtio-blk-pci,drive=disk,serial="+diskSerial)
	}
	ports := slots + 1
	if h.Disks {
		ports = slots + diskSlots
	}
	for i := range ports {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=slot%d,chassis=%d", i, i+1))
	}
	if h.Restore {
		args = append(args, "-incoming", "defer")
	}
	return args
}

//go:build amd64 || arm64

package render

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// seccomp is the filter of system calls in the sandbox, as the kernel takes it: it
// refuses what no renderer, driver or library of theirs needs, and through which
// kernels have been broken, or memory can be taken that nothing counts. All else
// passes, tomorrow's new calls too: it is a second wall, behind the namespaces.
var seccomp = assemble()

// refused fail as if the process had no right to them, which it mostly has not.
var refused = append([]uint32{
	// Other processes' memory and files.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
	// Namespaces and mounts: each opens parts of the kernel that are root's otherwise.
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	// Where the kernel's holes were found.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	// Root's own.
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
}, refusedHere...)

// unknown fail as if the kernel did not have them: programs then do without.
var unknown = []uint32{
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_CLONE3,                        // its flags are out of a filter's sight: libraries use clone instead
	unix.SYS_MEMFD_SECRET, unix.SYS_SHMGET, // memory that no process shows
}

// domains are the kinds of socket there are. Others, AF_VSOCK above all, do not know
// of network namespaces.
var domains = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

const newNamespace = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Where the kernel shows a call to a filter: struct seccomp_data. Of an argument the
// low half comes first, as on all processors that are named above.
const (
	seccompNumber = 0
	seccompArch   = 4
	seccompArgs   = 16
)

func assemble() []byte {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	jump := func(test uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	answer := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	fails := func(e unix.Errno) unix.SockFilter { return answer(unix.SECCOMP_RET_ERRNO | uint32(e)) }

	// The calls of other processors, 32 bits of this one's among them, have other numbers.
	line := []unix.SockFilter{
		load(seccompArch), jump(unix.BPF_JEQ, auditArch, 1, 0), fails(unix.ENOSYS),
		load(seccompNumber), jump(unix.BPF_JGE, 0x40000000, 0, 1), fails(unix.ENOSYS), // x32
	}
	for _, nr := range refused {
		line = append(line, jump(unix.BPF_JEQ, nr, 0, 1), fails(unix.EPERM))
	}
	for _, nr := range unknown {
		line = append(line, jump(unix.BPF_JEQ, nr, 0, 1), fails(unix.ENOSYS))
	}
	line = append(line,
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3),
		load(seccompArgs), jump(unix.BPF_JSET, newNamespace, 0, 1), fails(unix.EPERM),
		load(seccompNumber),
		// Keys typed into a terminal that another program has open.
		jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, 4),
		load(seccompArgs+8), jump(unix.BPF_JEQ, unix.TIOCSTI, 1, 0), jump(unix.BPF_JEQ, tiocLinux, 0, 1), fails(unix.EPERM),
		load(seccompNumber),
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, uint8(len(domains)+2)),
		load(seccompArgs))
	for i, d := range domains {
		line = append(line, jump(unix.BPF_JEQ, d, uint8(len(domains)-i), 0))
	}
	line = append(line, fails(unix.EAFNOSUPPORT), answer(unix.SECCOMP_RET_ALLOW))

	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, line) // to memory: it cannot fail
	return b.Bytes()
}

const tiocLinux = 0x541c

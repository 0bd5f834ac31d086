package render

import (
	"context"
	"math"
	"unsafe"

	"golang.org/x/sys/windows"
)

// watchProcesses puts the process pid and those that it will start into a job object
// with the bounds, and ends all of them when ctx ends or this process does. Its authors
// have built and vetted it, and not run it: they have no Windows.
//
// What the process started before it was in the job stays outside; Blender takes far
// longer to open a file. The job counts processes, not threads. Nothing here confines
// files or the network: that would take an AppContainer, in which Blender and the
// drivers of GPUs are not known to work.
func (m bounds) watchProcesses(ctx context.Context, pid int, _ string, _ context.CancelCauseFunc) {
	job, err := m.job(pid)
	if err != nil {
		return // it has ended, or the system has no nested jobs: there is nothing to hold
	}
	defer windows.CloseHandle(job) // ends what is left in it
	<-ctx.Done()
}

func (m bounds) job(pid int) (job windows.Handle, err error) {
	job, err = windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			windows.CloseHandle(job)
		}
	}()
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{
			LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS |
				windows.JOB_OBJECT_LIMIT_JOB_MEMORY | windows.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION,
			ActiveProcessLimit: activeProcesses,
		},
		// Of what is committed, which is more than what is in memory: what a GPU's driver
		// commits counts too. An allocation beyond it fails, and Blender says so.
		JobMemoryLimit: uintptr(min(uint64(m.memory), math.MaxUint)),
	}
	if _, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits))); err != nil {
		return 0, err
	}
	// No clipboard, no settings of the system, no other desktop, no shutdown. Limits on
	// handles and atoms are left out: drivers open windows of their own to draw.
	ui := windows.JOBOBJECT_BASIC_UI_RESTRICTIONS{
		UIRestrictionsClass: windows.JOB_OBJECT_UILIMIT_DESKTOP | windows.JOB_OBJECT_UILIMIT_DISPLAYSETTINGS | windows.JOB_OBJECT_UILIMIT_EXITWINDOWS |
			windows.JOB_OBJECT_UILIMIT_READCLIPBOARD | windows.JOB_OBJECT_UILIMIT_SYSTEMPARAMETERS | windows.JOB_OBJECT_UILIMIT_WRITECLIPBOARD,
	}
	if _, err = windows.SetInformationJobObject(job, windows.JobObjectBasicUIRestrictions,
		uintptr(unsafe.Pointer(&ui)), uint32(unsafe.Sizeof(ui))); err != nil {
		return 0, err
	}
	process, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(process)
	return job, windows.AssignProcessToJobObject(job, process)
}

// activeProcesses leaves Blender the few that its libraries start: a compiler of a
// driver's, for one.
const activeProcesses = 32

// Package tether is PID 1 of a container VM. It turns a booted kernel into one running
// container and ends the machine with it:
//
//	kernel     mount /dev /proc /sys; load the modules that the hardware asks for
//	log        open port "vic.log": from here on every failure is recorded
//	config     read the OEM strings, in a VMware VM the guestinfo, or in a template wait at port
//	           "vic.control" until a copy of it is given its configuration; seed the random number
//	           generator, set the clock
//	control    serve port "vic.control" beside all that follows; in a VMware VM answer as VMware
//	           Tools do (package guestrpc)
//	network    interfaces, addresses (static or DHCP), routes, beside the next
//	root       find the root disk, mount it, make it "/"
//	dress      /dev/pts /dev/shm /proc …, further mounts, /etc/hosts /etc/resolv.conf
//	           /etc/hostname, sysctls
//	run        user, working directory, environment, PATH; terminal or pipes; start; again,
//	           if the restart policy wants it
//	end        reap until the process exits; kill the rest; all output into the log, then
//	           the exit record; sync; unmount; power off
//
// What the guest and its host say to each other is package wire.
//
// # Machines
//
// Two things differ between machines, each found out by itself. The configuration is where the processor says whose
// machine it is (hostStrings). The ports are virtio-serial's if there is such a device, and else UARTs, /dev/ttyS1 for
// control and /dev/ttyS2 for the log, beside the console on /dev/ttyS0. A UART has a five-hundredth of the speed,
// and does not tell whether anybody is at its other end; the log on one is drained before the machine ends.
//
// # Modules
//
// The initramfs has /modules/NAME.ko and /modules/index, a line each:
//
//	NAME DEPENDENCIES ALIASES
//
// Dependencies are names joined by commas in the order to load them, or "-". Aliases,
// separated by spaces, are patterns; a module is loaded when one matches the modalias of a
// device, or is "*". Loading a driver makes further devices appear (virtio_pci the virtio
// devices, a SCSI host its disks), so the hardware is looked over again until what is waited
// for is there.
//
// # Files
//
// The image is not written to. /etc/hosts, /etc/resolv.conf and /etc/hostname are bind
// mounts of files in memory; only where the image lacks a mount point, or the working
// directory, an empty one is made, as docker does.
//
// # Processes
//
// The container's process is the first of a PID namespace and the root of what it sees of control
// groups, unless it has an init, which is this process. There is one mount namespace, so that what is
// mounted later is seen by all; the tether looks at a /proc of its own (see ownProc). Each process is started on a
// thread that has given up what the process is not to have. The reaper is the only one to call wait4 and owns the table of children: a
// signal is sent under its lock, never to a number that has been reaped. Output goes from a
// pipe or the terminal straight into the log port; if the host takes it slowly, the process
// waits in write(2), as it would in docker. Execs write into their control channels instead,
// and into nothing once the session that asked for them is lost. The tether gives way to the container's
// processes (see giveWay), so that those that write a little at a time fill their pipe first.
package tether

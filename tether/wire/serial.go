package wire

// A VM without virtio-serial, such as VMware's, has UARTs at the addresses of COM1 to COM4: the kernel's console, then in
// the place of ControlPort and of LogPort, and the bell. That one may be missing. A byte comes out of it after each piece of the
// log: whoever has the log as a file far away need not look at it again and again.
const (
	ControlSerial = 1 // /dev/ttyS1
	LogSerial     = 2
	BellSerial    = 3
)

// SerialWindow is ConnectOptions.Window over a UART. One takes some 0.1 MB/s into a guest and 0.5 out of it, and what is under
// way on one channel is ahead of all others.
const SerialWindow = 8 << 10

#include "textflag.h"

// func cpuid(leaf uint32) (a, b, c, d uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL AX, a+8(FP)
	MOVL BX, b+12(FP)
	MOVL CX, c+16(FP)
	MOVL DX, d+20(FP)
	RET

// func in(r *registers)
TEXT ·in(SB), NOSPLIT, $0-8
	MOVQ r+0(FP), R8
	MOVL 0(R8), AX
	MOVL 4(R8), BX
	MOVL 8(R8), CX
	MOVL 12(R8), DX
	MOVL 16(R8), SI
	MOVL 20(R8), DI
	INL
	MOVL AX, 0(R8)
	MOVL BX, 4(R8)
	MOVL CX, 8(R8)
	MOVL DX, 12(R8)
	MOVL SI, 16(R8)
	MOVL DI, 20(R8)
	RET

// The frame of the next two is there so that the assembler saves BP and brings it back.

// func outBytes(r *registers, from *byte)
TEXT ·outBytes(SB), NOSPLIT, $8-16
	MOVQ r+0(FP), R8
	MOVQ from+8(FP), SI
	MOVL 0(R8), AX
	MOVL 4(R8), BX
	MOVL 8(R8), CX
	MOVL 12(R8), DX
	MOVL 20(R8), DI
	MOVL 24(R8), BP
	CLD
	REP; OUTSB
	MOVL BX, 4(R8)
	RET

// func inBytes(r *registers, to *byte)
TEXT ·inBytes(SB), NOSPLIT, $8-16
	MOVQ r+0(FP), R8
	MOVQ to+8(FP), DI
	MOVL 0(R8), AX
	MOVL 4(R8), BX
	MOVL 8(R8), CX
	MOVL 12(R8), DX
	MOVL 16(R8), SI
	MOVL 24(R8), BP
	CLD
	REP; INSB
	MOVL BX, 4(R8)
	RET

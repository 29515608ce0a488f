# U-Boot's part of the A/B boot; firmware/build.sh fills in the numbers. docs/firmware.md has the state machine.
# Written without setexpr and itest, which some of Debian's builds lack: hence counting by words.
echo "ocelli: boot script for @BOARD@"
@DISK@ dev ${devnum}

# oc_read: the copy of the state in sector ${oc_sector}; oc_ok tells whether it is whole.
setenv oc_read 'setenv oc_ok no; if @DISK@ read @STATE@ ${oc_sector} 1; then crc32 @STATE@ 1f8 @CRC@; if cmp.b @STATE_CRC1@ @CRC@ 4; then setenv oc_ok yes; elif cmp.b @STATE_CRC2@ @CRC@ 4; then setenv oc_ok yes; fi; fi'
# oc_save: over the older copy, with the next count.
setenv oc_save 'if test ${oc_copy} = 0; then setenv oc_copy 1; setenv oc_sector @STATE1@; else setenv oc_copy 0; setenv oc_sector @STATE0@; fi; if test ${oc_gen} = 0; then setenv oc_gen 1; elif test ${oc_gen} = 1; then setenv oc_gen 2; else setenv oc_gen 0; fi; setenv oc_format 1; env export -t -s 1f8 @STATE@ oc_a oc_active oc_b oc_format oc_gen oc_tries; crc32 @STATE@ 1f8 @STATE_CRC1@; crc32 @STATE@ 1f8 @STATE_CRC2@; @DISK@ write @STATE@ ${oc_sector} 1'
# oc_turn: the other slot is the active one.
setenv oc_turn 'if test ${oc_active} = a; then setenv oc_active b; else setenv oc_active a; fi; setenv oc_tries 0'
# oc_look: standing of the active slot and of the other one.
setenv oc_look 'if test ${oc_active} = a; then setenv oc_this ${oc_a}; setenv oc_that ${oc_b}; else setenv oc_this ${oc_b}; setenv oc_that ${oc_a}; fi'
setenv oc_mark_bad 'if test ${oc_active} = a; then setenv oc_a bad; else setenv oc_b bad; fi'
# oc_part: loads a part and compares its CRC-32, which the header holds in both byte orders.
setenv oc_part 'setenv oc_ok no; if @DISK@ read ${oc_to} ${oc_from} ${oc_n}; then crc32 ${oc_to} ${oc_size} @CRC@; if cmp.b ${oc_crc1} @CRC@ 4; then setenv oc_ok yes; elif cmp.b ${oc_crc2} @CRC@ 4; then setenv oc_ok yes; fi; fi'
# oc_boot: boots the active slot; comes back when its kernel is damaged.
setenv oc_boot 'if test ${oc_active} = a; then run oc_where_a; else run oc_where_b; fi; run oc_header; if test ${oc_ok} = yes; then run oc_kernel; fi; if test ${oc_ok} = yes; then run oc_initrd; fi; if test ${oc_ok} = yes; then run oc_dtb; fi; if test ${oc_ok} = yes; then run oc_go; fi; echo "ocelli: slot ${oc_active} has no kernel that can be started"'
setenv oc_where_a 'setenv oc_at_header @A_HEADER@; setenv oc_at_kernel @A_KERNEL@; setenv oc_at_initrd @A_INITRD@; setenv oc_at_dtb @A_DTB@'
setenv oc_where_b 'setenv oc_at_header @B_HEADER@; setenv oc_at_kernel @B_KERNEL@; setenv oc_at_initrd @B_INITRD@; setenv oc_at_dtb @B_DTB@'
setenv oc_header 'setenv oc_to @HEADER@; setenv oc_from ${oc_at_header}; setenv oc_n 1; setenv oc_size 1f8; setenv oc_crc1 @HEADER_CRC1@; setenv oc_crc2 @HEADER_CRC2@; run oc_part; if test ${oc_ok} = yes; then env import -t @HEADER@ 1c8 oc_kernel_n oc_kernel_size oc_initrd_n oc_initrd_size oc_dtb_n oc_dtb_size oc_version; fi'
setenv oc_kernel 'setenv oc_to @KERNEL_ADDR@; setenv oc_from ${oc_at_kernel}; setenv oc_n ${oc_kernel_n}; setenv oc_size ${oc_kernel_size}; setenv oc_crc1 @KERNEL_CRC1@; setenv oc_crc2 @KERNEL_CRC2@; run oc_part'
setenv oc_initrd 'setenv oc_to @INITRD_ADDR@; setenv oc_from ${oc_at_initrd}; setenv oc_n ${oc_initrd_n}; setenv oc_size ${oc_initrd_size}; setenv oc_crc1 @INITRD_CRC1@; setenv oc_crc2 @INITRD_CRC2@; run oc_part'
setenv oc_dtb '@LOAD_DTB@'
setenv oc_go 'echo "ocelli: booting slot ${oc_active}, version ${oc_version}, ${oc_this}"; setenv bootargs "console=@CONSOLE@ quiet loglevel=4 panic=10 @WORDS@ ocelli.slot=${oc_active} ocelli.disk=@SIGNATURE@"; @UNPACK@ @BOOT@ @KERNEL_ADDR@ @INITRD_ADDR@:${oc_initrd_size} @FDT@'

setenv oc_sector @STATE0@; run oc_read; setenv oc_ok0 ${oc_ok}
if test ${oc_ok0} = yes; then env import -t @STATE@ 1f8 oc_gen; setenv oc_gen0 ${oc_gen}; fi
setenv oc_sector @STATE1@; run oc_read; setenv oc_ok1 ${oc_ok}
if test ${oc_ok1} = yes; then env import -t @STATE@ 1f8 oc_gen; setenv oc_gen1 ${oc_gen}; fi
setenv oc_copy none
if test ${oc_ok0} = yes; then setenv oc_copy 0; fi
if test ${oc_ok1} = yes; then
    if test ${oc_copy} = none; then setenv oc_copy 1; fi
    if test ${oc_gen0}${oc_gen1} = 01; then setenv oc_copy 1; fi
    if test ${oc_gen0}${oc_gen1} = 12; then setenv oc_copy 1; fi
    if test ${oc_gen0}${oc_gen1} = 20; then setenv oc_copy 1; fi
fi
if test ${oc_copy} = none; then
    echo "ocelli: no boot state, both slots count as good"
    setenv oc_copy 1; setenv oc_gen 2; setenv oc_active a; setenv oc_tries 0; setenv oc_a good; setenv oc_b good
else
    if test ${oc_copy} = 0; then setenv oc_sector @STATE0@; else setenv oc_sector @STATE1@; fi
    run oc_read
    env import -t @STATE@ 1f8 oc_a oc_active oc_b oc_gen oc_tries
fi
run oc_look
echo "ocelli: state a=${oc_a} b=${oc_b} active=${oc_active} tries=${oc_tries}"

if test ${oc_this} = trial; then
    if test ${oc_tries} = 0; then
        echo "ocelli: slot ${oc_active} was not confirmed in its tries, falling back"
        run oc_mark_bad
        if test ${oc_that} != empty; then run oc_turn; fi
    else
        if test ${oc_tries} = 3; then setenv oc_tries 2; elif test ${oc_tries} = 2; then setenv oc_tries 1; else setenv oc_tries 0; fi
    fi
    run oc_save
    run oc_look
fi
run oc_boot
if test ${oc_that} != empty; then
    run oc_mark_bad; run oc_turn; run oc_save; run oc_look
    echo "ocelli: falling back to slot ${oc_active}"
    run oc_boot
fi
echo "ocelli: NO SLOT CAN BE STARTED. Write the image to the card again (docs/firmware.md). Next attempt in 30 s."
sleep 30
reset
